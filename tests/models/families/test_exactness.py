"""Every family against transformers' full forward: captions, packed rows, prompts, published models.

The figures of all families are in ``docs/models.md``, made by ``make families``.
"""

from functools import cache

import pytest
import torch

from jsfree.models.families import gemma3, qwen_vl
from jsfree.models.families.base import Prompt
from jsfree.models.loading import Captioner
from tests.support.families import checks
from tests.support.families.builders import BUILDERS

FAST = "Qwen2.5-VL"
"""The family that ``make test`` covers; the others are marked slow."""
NAMES = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]
HUB_KEYS = {
    "LLaVA (SigLIP)": ("vision_tower.vision_model.encoder.", "language_model.model.layers.", "multi_modal_projector."),
    "InternVL3": ("vision_tower.encoder.", "language_model.model.layers.", "multi_modal_projector."),
    "LLaVA-NeXT": ("vision_tower.vision_model.", "language_model.model.layers.", "image_newline"),
    "LLaVA-OneVision": ("vision_tower.vision_model.", "language_model.model.layers.", "image_newline"),
    "Qwen2-VL": ("visual.merger.", "model.layers.", "lm_head."),
    "Qwen2.5-VL": ("visual.merger.", "model.layers.", "lm_head."),
    "Qwen3-VL": ("model.visual.merger.", "model.language_model.layers."),
    "Gemma 3": ("vision_tower.vision_model.", "language_model.model.layers.", "multi_modal_projector."),
}
"""Beginnings of keys in the weight files of the published checkpoints."""

built = cache(lambda name: BUILDERS[name]())


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_decodes_the_captions_of_algorithm_1(name):
    """Images of different sizes, h = 0, 0.3 and 1, one view and three, in fewer slots than captions."""
    images = 3 if name == FAST else 10
    assert checks.engine_agreement(built(name), images) == checks.Agreement(6 * images, 6 * images)


@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_give_the_log_probabilities_and_gradients_of_separate_forwards(name):
    found = checks.packing(BUILDERS[name]())
    assert found.trained_projector
    assert found.sums < 1e-3
    assert found.gradients < 1e-5
    assert found.cached < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_inputs_are_those_of_the_processor(name):
    found = checks.prompts(built(name))
    assert found.without_image
    assert found.with_image
    assert found.logits < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_gives_the_same_logits(name, tmp_path):
    from safetensors import safe_open

    assert checks.reloaded(built(name), tmp_path) < 1e-6
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        keys = list(weights.keys())
    for beginning in HUB_KEYS.get(name, ()):
        assert any(key.startswith(beginning) for key in keys), (beginning, keys[:3], keys[-3:])


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_vision_are_never_drawn_and_not_allowed_in_prompts(name):
    captioner = built(name)
    image = captioner.inputs(checks.picture(0))
    expanded = set(captioner.processor.tokenizer(image.text, add_special_tokens=False)["input_ids"])
    special = set(captioner.processor.tokenizer.all_special_ids)
    assert captioner.model.config.image_token_id in expanded
    assert (expanded & special) - captioner.eos_ids <= set(captioner.suppressed_ids)
    assert len(captioner.vision_tokens) == len(captioner.vision_ids) >= 1


def test_captions_that_start_at_the_length_of_the_prompt_are_wrong_for_mrope(monkeypatch):
    """A guard of the tests themselves: the position that LLaVA uses changes captions and log-probabilities."""
    monkeypatch.setattr(Prompt, "next_position", property(len))
    agreement = checks.engine_agreement(built(FAST), 2)
    assert agreement.identical < agreement.captions
    assert checks.packing(BUILDERS[FAST]()).sums > 1e-2


def test_positions_on_one_axis_are_wrong_for_mrope(monkeypatch):
    monkeypatch.setattr(
        qwen_vl.Qwen2VL, "positions", lambda *arguments: torch.arange(len(arguments[3]))[None].expand(3, -1)
    )
    assert checks.packing(BUILDERS[FAST]()).sums > 1e-2


def test_without_token_types_the_logits_are_not_those_of_the_processor(monkeypatch):
    """Qwen2.5-VL then counts positions on one axis, and raises nothing."""
    monkeypatch.setattr(qwen_vl.Qwen2VL, "token_arguments", lambda *_: {})
    assert checks.prompts(built(FAST)).logits > 1e-2


@pytest.mark.slow
def test_deepstack_changes_the_log_probabilities_of_training(monkeypatch):
    monkeypatch.setattr(qwen_vl.Qwen3VL, "language_arguments", lambda *_: {})
    assert checks.packing(BUILDERS["Qwen3-VL"]()).sums > 1e-2


@pytest.mark.slow
def test_the_image_block_changes_the_log_probabilities_of_training(monkeypatch):
    monkeypatch.setattr(gemma3.Gemma3, "has_image_blocks", False)
    assert checks.packing(BUILDERS["Gemma 3"]()).sums > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_moving_pixels_moves_the_picture_that_the_tower_sees(name):
    """The identity changes nothing, and two opposite moves restore all but the edges."""
    captioner: Captioner = built(name)
    image = captioner.inputs(checks.picture(0))
    seen = []
    same = captioner.map_pixels(image, lambda canvas: seen.append(canvas) or canvas)
    assert all(canvas.ndim == 3 and canvas.shape[0] == 3 for canvas in seen)
    for key, tensor in image.tensors.items():
        assert torch.equal(same.tensors[key], tensor), key
    moved = captioner.map_pixels(image, lambda canvas: canvas.roll(2, -1))
    back = captioner.map_pixels(moved, lambda canvas: canvas.roll(-2, -1))
    assert not torch.equal(moved.tensors["pixel_values"], image.tensors["pixel_values"])
    assert torch.equal(back.tensors["pixel_values"], image.tensors["pixel_values"])

"""Every family against transformers' full forward: captions, packed rows, prompts, published models.

``test_traps.py`` shows that these checks notice faults which raise no error. The figures of all families are in
``docs/models.md``, made by ``make families``.
"""

from functools import cache

import pytest
import torch

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
    agreement = checks.engine_agreement(built(name), images)
    assert agreement.identical == agreement.captions == 6 * images
    assert agreement.distinct > agreement.captions / 3


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
def test_tokens_of_vision_are_not_allowed_in_captions_and_prompts(name):
    captioner = built(name)
    of_vision = checks.vision_ids(captioner)
    assert captioner.model.config.image_token_id in of_vision
    assert of_vision <= set(captioner.suppressed_ids)
    assert len(captioner.vision_tokens) == len(captioner.vision_ids) >= len(of_vision)


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

"""Faults that raise no error, put back one at a time: the checks of ``test_exactness.py`` must notice each of them.

With the fault, a model of the family captions or trains, only not as transformers would. Where a fault does raise an
error, the test says which.
"""

from dataclasses import replace

import pytest
import torch
from PIL import ImageOps

from jsfree.config import Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding import engine as engines
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.dpo import policy
from jsfree.dpo.batching import PADDING, PAIR, pack, require_context
from jsfree.dpo.policy import PairModel
from jsfree.errors import DecodingError, ModelError, StageError
from jsfree.models import loading, prompts
from jsfree.models.families import anyres, gemma3, internvl, llava, qwen_vl
from jsfree.models.families.base import FEATURES, PIXELS, Prompt, Visual
from tests.support.families import builders, checks
from tests.support.families.builders import BUILDERS

NOTICED = 1e-2
"""Differences of log-probabilities or logits above it are no rounding."""
MROPE = "Qwen2.5-VL"


# Positions


def test_captions_that_start_at_the_length_of_the_prompt(monkeypatch):
    """The position after a prompt of any family but those with M-RoPE."""
    monkeypatch.setattr(Prompt, "next_position", property(len))
    agreement = checks.engine_agreement(BUILDERS[MROPE](), 2)
    assert agreement.identical < agreement.captions
    assert checks.packing(BUILDERS[MROPE]()).sums > NOTICED


def test_positions_on_one_axis(monkeypatch):
    monkeypatch.setattr(
        qwen_vl.Qwen2VL, "positions", lambda *arguments: torch.arange(len(arguments[3]))[None].expand(3, -1)
    )
    assert checks.packing(BUILDERS[MROPE]()).sums > NOTICED


@pytest.mark.parametrize(
    ("name", "family"),
    [(MROPE, qwen_vl.Qwen2VL), pytest.param("Gemma 3", gemma3.Gemma3, marks=pytest.mark.slow)],
)
def test_missing_token_types(monkeypatch, name, family):
    """Qwen2.5-VL then counts positions on one axis, and Gemma 3 masks the later tokens of an image."""
    monkeypatch.setattr(family, "token_arguments", lambda *_: {})
    assert checks.prompts(BUILDERS[name]()).logits > NOTICED


def test_a_prompt_without_image_does_not_depend_on_the_images_before():
    """transformers keeps the difference between positions and tokens of the last image on the model."""
    captioner = BUILDERS[MROPE]()
    ids = torch.tensor([captioner.prompt_ids(checks.PROMPT, None)])
    with torch.no_grad():
        before = captioner.model(input_ids=ids).logits
        image = captioner.inputs(checks.picture(0))
        prompt = captioner.prompt_ids(checks.PROMPT, image)
        captioner.model(input_ids=torch.tensor([prompt]), **captioner.forward_arguments(prompt, [image]))
        assert captioner.model.model.rope_deltas is not None
        assert torch.equal(captioner.model(input_ids=ids).logits, before)


# Masks


def causal(segments_BL, dtype, _):
    """A mask that lets the rejected caption attend to the chosen one."""
    length = segments_BL.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & (segments_BL != PADDING)[:, None, None, :]
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


@pytest.mark.parametrize("mask", [causal, lambda *_: None], ids=["causal", "none"])
def test_captions_that_attend_to_each_other(monkeypatch, mask):
    monkeypatch.setattr(policy, "attention_mask", mask)
    assert checks.packing(BUILDERS[MROPE]()).sums > NOTICED


@pytest.mark.slow
def test_image_tokens_that_do_not_attend_to_later_ones(monkeypatch):
    monkeypatch.setattr(gemma3.Gemma3, "has_image_blocks", False)
    assert checks.packing(BUILDERS["Gemma 3"]()).sums > NOTICED


def request_of(captioner, tokens: int, number: int = 0) -> Request:
    """A sampled caption with image."""
    image = captioner.inputs(checks.picture(number))
    key = noise_key(0, 1, str(number), "chosen")
    return Request(str(number), image, checks.PROMPT, 0.0, key, Decoding(max_new_tokens=tokens))


@pytest.fixture
def narrow():
    """A Gemma 3 whose window ends 3 tokens after the prompt."""
    captioner = builders.gemma3()
    return builders.gemma3(len(captioner.prompt_ids(checks.PROMPT, captioner.inputs(checks.picture(0)))) + 3)


def test_captions_that_leave_the_window(monkeypatch, narrow):
    """The engine refuses them; decoded all the same, they are not those of transformers."""
    longer = [request_of(narrow, 12, number) for number in range(3)]
    literal = [algorithm1.decode(narrow, request) for request in longer]
    engine = DualPathEngine(narrow, Workload(4, captions_per_image=2))
    fitting = [replace(request, decoding=Decoding(max_new_tokens=3)) for request in longer]
    assert [each.token_ids for each in engine.decode(fitting)] == [each.token_ids[:3] for each in literal]
    with pytest.raises(DecodingError, match="sliding window"):
        engine.decode(longer)
    monkeypatch.setattr(engines, "check_window", lambda *_: None)
    assert [each.token_ids for each in engine.decode(longer)] != [each.token_ids for each in literal]


def test_pairs_that_leave_the_window_are_not_trained_on(narrow):
    prompt = narrow.prompt(checks.PROMPT, narrow.inputs(checks.picture(0)))
    pair = {"sample_id": "a", "chosen": {"token_ids": [5, 6, 7]}, "rejected": {"token_ids": [8]}}
    require_context(pair, prompt, narrow, PAIR)
    with pytest.raises(StageError, match=r"a caption 4, more than the"):
        require_context({**pair, "rejected": {"token_ids": [5, 6, 7, 8]}}, prompt, narrow, PAIR)


# Images


def test_a_class_token_where_the_tower_has_none(monkeypatch):
    """17 image tokens for the 16 features of a SigLIP tower: training and decoding refuse them."""
    monkeypatch.setattr(llava, "TOWERS_WITH_CLASS_TOKEN", llava.TOWERS)
    captioner = BUILDERS["LLaVA (SigLIP)"]()
    image = captioner.inputs(checks.picture(0))
    batch = pack([captioner.prompt(checks.PROMPT, image)], [{"chosen": [5], "rejected": [6]}], [image])
    with pytest.raises(ModelError, match="17 image tokens in the prompts of 1 rows, but 16 visual tokens"):
        PairModel(captioner.model)(batch)
    with pytest.raises(ValueError, match="do not match"):
        checks.prompts(captioner)


@pytest.mark.parametrize("name", ["LLaVA-NeXT", pytest.param("LLaVA-OneVision", marks=pytest.mark.slow)])
def test_tiles_that_are_not_packed_by_the_sizes_of_images(monkeypatch, name):
    """The number of features is then another one, which training refuses."""
    monkeypatch.setattr(
        anyres.AnyResolution,
        "project",
        lambda _, model, tensors: Visual(model.model.multi_modal_projector(tensors[FEATURES]).flatten(0, 1)),
    )
    with pytest.raises(ModelError, match="image tokens in the prompts of 3 rows, but"):
        checks.packing(BUILDERS[name]())


def test_tiles_in_another_order(monkeypatch):
    """Columns for rows: the right number of tiles, of which those of a changed image are at the wrong places."""
    captioner = BUILDERS["LLaVA-NeXT"]()
    picture = checks.picture(0).resize((256, 64))
    image = captioner.inputs(picture)
    expected = captioner.inputs(ImageOps.mirror(picture)).tensors[PIXELS]
    assert len(expected) > 2

    def mirrored() -> torch.Tensor:
        return captioner.map_pixels(image, lambda pixels: pixels.flip(-1)).tensors[PIXELS]

    torch.testing.assert_close(mirrored(), expected, atol=0.05, rtol=0)
    grid = anyres._grid
    monkeypatch.setattr(anyres, "_grid", lambda config, size: grid(config, size)[::-1])
    assert (mirrored() - expected).abs().max() > 0.5


@pytest.mark.slow
def test_features_in_the_order_of_the_windows(monkeypatch):
    """Qwen2.5-VL's tower returns patches window by window."""
    monkeypatch.setattr(qwen_vl.Qwen25VL, "project", qwen_vl.Qwen2VL.project)
    assert checks.packing(BUILDERS[MROPE]()).sums > NOTICED


@pytest.mark.slow
def test_deepstack_that_is_not_passed_in_training(monkeypatch):
    monkeypatch.setattr(qwen_vl.Qwen3VL, "language_arguments", lambda *_: {})
    assert checks.packing(BUILDERS["Qwen3-VL"]()).sums > NOTICED


@pytest.mark.parametrize("name", ["InternVL3", "Gemma 3", "Idefics3", "SmolVLM 2"])
def test_images_are_not_cut_into_tiles(name):
    """Processors of the hub may be set to do so."""
    captioner = BUILDERS[name]()
    for option in captioner.family.image_options:
        if option != "return_row_col_info":
            setattr(captioner.processor.image_processor, option, True)
    square, wide = (captioner.inputs(checks.picture(0).resize(size)) for size in ((64, 64), (256, 64)))
    assert square.rows == wide.rows == 1
    assert square.text == wide.text


def test_images_that_are_cut_into_tiles(monkeypatch):
    """A guard of the test before: without the option, a wide image takes more tokens."""
    monkeypatch.setattr(internvl.InternVL, "image_options", {})
    captioner = BUILDERS["InternVL3"]()
    captioner.processor.image_processor.crop_to_patches = True
    assert captioner.inputs(checks.picture(0).resize((256, 64))).rows > 1


# Tokens


def drawn(captioner) -> set[int]:
    """Tokens of three captions of a model that prefers the tokens of vision."""
    preferred = sorted(checks.vision_ids(captioner))

    def prefer(_, inputs, logits):
        return logits.index_add(-1, torch.tensor(preferred), torch.full((*logits.shape[:-1], len(preferred)), 100.0))

    captioner.model.lm_head.register_forward_hook(prefer)
    engine = DualPathEngine(captioner, Workload(4, captions_per_image=1))
    captions = engine.decode([replace(request_of(captioner, 6, number), ratio=0.3) for number in range(3)])
    return {token for caption in captions for token in caption.token_ids} & set(preferred)


@pytest.mark.parametrize(
    "name", [MROPE, *(pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS if name != MROPE)]
)
def test_tokens_of_vision_are_not_drawn_even_if_the_model_prefers_them(name):
    assert drawn(BUILDERS[name]()) == set()


@pytest.mark.parametrize("name", [MROPE, pytest.param("InternVL3", marks=pytest.mark.slow)])
def test_the_image_token_as_the_only_one_that_is_not_drawn(monkeypatch, name):
    monkeypatch.setattr(loading, "vision_ids", lambda family, config, processor: frozenset([config.image_token_id]))
    assert drawn(BUILDERS[name]())


def test_a_token_of_vision_that_the_configuration_does_not_name():
    """That of Qwen3-VL does not name the padding of vision, which is in the tokenizers of all Qwen models."""
    captioner = BUILDERS["Qwen3-VL"]()
    captioner.processor.tokenizer.add_tokens(["<|vision_pad|>"], special_tokens=True)
    padding = captioner.processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    assert padding < captioner.vocabulary
    assert padding in captioner.suppressed_ids
    assert "<|vision_pad|>" in captioner.vision_tokens


@pytest.mark.parametrize("name", [MROPE, "Gemma 3"])
def test_a_prompt_from_which_only_the_placeholder_is_deleted(monkeypatch, name):
    captioner = BUILDERS[name]()
    placeholder = captioner.family.placeholder(captioner.processor)

    def deleted(processor, text):
        return prompts.conditional_prompt(processor, text, placeholder).replace(placeholder, "")

    assert checks.prompts(captioner).without_image
    monkeypatch.setattr(prompts, "unconditional_prompt", deleted)
    again = loading.Captioner(captioner.model, captioner.processor)
    assert checks.prompts(again).without_image is (name == "Gemma 3")

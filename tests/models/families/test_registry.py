"""Which models are supported, and how others are refused, without loading weights."""

import json

import pytest
import transformers
from transformers import (
    GptOssConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Config,
)

from jsfree.config import Decoding
from jsfree.decoding.requests import Request, check_window
from jsfree.errors import DecodingError, ModelError
from jsfree.models.families import idefics3
from jsfree.models.families.refusals import REFUSED, SUPPORTED, require_type
from jsfree.models.families.registry import FAMILIES, family_of, window_of
from jsfree.models.loading import load_captioner
from tests.support.families.builders import BUILDERS
from tests.support.families.checks import picture


def test_every_family_names_classes_of_transformers():
    for name, family in FAMILIES.items():
        assert hasattr(transformers, family.model_class), name
        assert hasattr(transformers, family.processor_class), name
        assert family.part_of("model.language_model.layers.0.mlp.up_proj.weight") == "language"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("visual.merger.mlp.0.weight", "projector"),
        ("model.visual.blocks.0.attn.qkv.weight", "tower"),
        ("model.layers.0.mlp.up_proj.weight", "language"),
    ],
)
def test_parts_of_qwen_are_told_by_names_of_the_hub_and_of_transformers(name, part):
    assert FAMILIES["qwen2_5_vl"].part_of(name) == part


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mllama", "cross-attention"),
        ("phi4_multimodal", "other weights for prompts with an image"),
        ("qwen3_5", "recurrent state"),
        ("minicpmv4_6", "recurrent state"),
        ("lfm2_vl", "convolution layers"),
        ("gemma3n", "reuse the keys and values"),
        ("llama4", "in chunks"),
        ("paligemma", "both directions"),
    ],
)
def test_known_models_are_refused_with_the_reason_before_they_are_loaded(tmp_path, model_type, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name in ("processor_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=rf"of type '{model_type}': .*{reason}"):
        load_captioner(str(tmp_path))


def test_other_models_are_refused_with_a_list_of_families():
    with pytest.raises(ModelError, match=r"type 'blip', with which jsfree has not been tested; use one of type llava,"):
        require_type("blip", "captioner 'x'")
    assert not REFUSED.keys() & FAMILIES.keys()
    assert tuple(FAMILIES) == SUPPORTED


def test_refused_models_have_the_names_of_transformers():
    assert set(REFUSED) <= set(transformers.CONFIG_MAPPING)


def test_layers_without_keys_and_values_are_refused():
    text = Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "full_attention"])
    text.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match=r"'qwen2' has layers of kind linear_attention"):
        family_of(LlavaConfig(text_config=text))


@pytest.mark.parametrize("name", ["final_logit_softcapping", "attn_logit_softcapping", "logits_scaling"])
def test_capped_and_scaled_logits_are_refused(name):
    """Training applies the head itself and decoding the attention, without either."""
    text = LlamaConfig()
    setattr(text, name, 30.0)
    with pytest.raises(ModelError, match=rf"changes its logits or scores \({name}\)"):
        family_of(LlavaConfig(text_config=text))


def test_attention_sinks_are_refused():
    with pytest.raises(ModelError, match="'gpt_oss' has attention sinks"):
        family_of(InternVLConfig(text_config=GptOssConfig()))


def test_other_towers_than_those_whose_tokens_are_counted_are_refused():
    """Pixtral is a model of type llava, too, with a number of tokens that depends on the size of the image."""
    with pytest.raises(ModelError, match=r"vision tower of type 'pixtral'.*clip_vision_model or siglip_vision_model"):
        family_of(LlavaConfig(vision_config=PixtralVisionConfig()))


def test_smolvlm_without_the_package_of_its_processor_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(idefics3, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"requires the package num2words.*extra 'smolvlm'"):
        FAMILIES["smolvlm"].load_processor(tmp_path)


def test_the_window_is_that_of_layers_that_have_one():
    assert window_of(LlavaConfig(text_config=MistralConfig(sliding_window=64))) == 64
    assert window_of(LlavaConfig(text_config=MistralConfig(sliding_window=None))) is None
    assert window_of(LlavaConfig(text_config=LlamaConfig())) is None


def test_a_caption_that_could_leave_the_window_is_refused():
    captioner = BUILDERS["Gemma 3"]()
    image = captioner.inputs(picture(0))
    prompt = len(captioner.prompt_ids("Describe.", image))
    room = 128 - prompt
    check_window(captioner, Request("x", image, "Describe.", 0.0, 0, Decoding(max_new_tokens=room)))
    with pytest.raises(DecodingError, match=rf"sliding window of 128 tokens .* set 'max_new_tokens' to {room} or less"):
        check_window(captioner, Request("x", image, "Describe.", 0.0, 0, Decoding(max_new_tokens=room + 1)))
    assert captioner.longest_caption(captioner.prompt("Describe.", image)) == room

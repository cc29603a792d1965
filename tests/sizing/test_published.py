"""The shapes of published models of other families, against their sizes and the processors' own counts."""

from pathlib import Path

import pytest
from PIL import Image

from jsfree import config as configuration
from jsfree.models.families.base import TYPICAL_SIZE
from jsfree.models.families.registry import FAMILIES
from jsfree.sizing import footprint, published, shapes
from jsfree.sizing.published import published_shape
from tests.support import ROOT

# Parameters as the hub shows them, and two keys of the index file.
KNOWN = {
    "Qwen/Qwen2.5-VL-7B-Instruct": (8.292e9, "visual.merger.mlp.0.weight", "model.layers.27.mlp.up_proj.weight"),
    "Qwen/Qwen3-VL-8B-Instruct": (
        8.767e9,
        "model.visual.deepstack_merger_list.2.linear_fc1.weight",
        "model.language_model.layers.35.self_attn.q_norm.weight",
    ),
    "OpenGVLab/InternVL3-8B-hf": (
        7.944e9,
        "multi_modal_projector.linear_1.weight",
        "language_model.model.layers.27.mlp.up_proj.weight",
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        8.030e9,
        "image_newline",
        "language_model.model.layers.27.mlp.up_proj.weight",
    ),
}
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
NEW = ("qwen2.5-vl-7b", "qwen3-vl-8b", "internvl3-8b", "llava-onevision-7b")


@pytest.mark.slow
@pytest.mark.parametrize("ref", list(KNOWN))
def test_parameters_and_names_are_those_of_the_hub(ref):
    shape = published_shape(ref)
    total, *keys = KNOWN[ref]
    assert shapes.parameters(shape) == pytest.approx(total, rel=0.005)
    assert set(keys) <= set(shape.tensors)
    counted = footprint.parameters_of(shape.tensors, shape.family, None)
    assert 0.01 * total < counted.total - counted.trained < 0.1 * total  # the frozen tower
    lasts = footprint.parameters_of(shape.tensors, shape.family, 1)
    assert 0.01 * total < lasts.trained < 0.1 * total  # the projector and a layer


def processor_of(ref: str):
    """An image processor with the published sizes, and how many tokens it makes of its output."""
    if "OneVision" in ref or "onevision" in ref:
        from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor

        made = LlavaOnevisionImageProcessor()
        counter = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        counter.image_processor, counter.num_image_tokens = made, 729
        counter.vision_aspect_ratio = "anyres_max_9"
        width, height = TYPICAL_SIZE
        return counter._get_number_of_features(height, width, 384, 384)
    from transformers import Qwen2VLImageProcessor

    side = 16 if "Qwen3" in ref else 14
    made = Qwen2VLImageProcessor(patch_size=side, size={"shortest_edge": 4 * side**2, "longest_edge": 16384 * side**2})
    grid = made(Image.new("RGB", TYPICAL_SIZE), return_tensors="pt")["image_grid_thw"][0]
    return int(grid.prod()) // 4


@pytest.mark.parametrize("ref", [ref for ref in KNOWN if "InternVL" not in ref])
def test_image_tokens_of_a_photograph_are_those_of_the_processor(ref):
    assert published.FAMILIES[ref].image_tokens == processor_of(ref)


@pytest.mark.parametrize("name", NEW)
def test_the_configurations_name_published_models_of_supported_families(name):
    settings = configuration.load(Path(CONFIGS[name]))
    known = published.FAMILIES[settings.captioner.ref]
    assert known.config["model_type"] in FAMILIES
    context = known.config["text_config"]["max_position_embeddings"]
    assert known.image_tokens + 64 + settings.generate.decoding.max_new_tokens < context


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_the_configurations_can_be_planned_without_a_network_and_fit_80_gb(name):
    from ray_jobs.commands.preflight import plan

    result = plan(configuration.load(Path(CONFIGS[name])), "h100-80g")
    assert [finding for finding in result.findings if finding.verdict.name == "FAILS"] == []
    assert {time.stage for time in result.times} == {"generate", "score", "train", "evaluate"}
    assert all(time.seconds for time in result.times)

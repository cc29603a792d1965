"""Sizes of scorers equal published ones, and preflight's times and memory follow them."""

import pytest
from safetensors import safe_open

from jsfree import config
from jsfree.checks import devices, models
from jsfree.errors import ModelError
from jsfree.sizing import rates
from jsfree.sizing.scorers import TYPICAL, scorer_shape, shape_of
from jsfree.sizing.workload import workload_of
from tests.sizing.test_memory import LENGTHS, LLAVA
from tests.support import tiny_clips


def clip(ref, pretrained=None):
    return config.ClipModel(ref=ref, pretrained=pretrained)


@pytest.mark.parametrize(
    ("name", "tag", "millions", "gflops", "context", "is_causal"),
    [
        ("ViT-L-14-336", "openai", 427.94, 395.22, 77, True),
        ("MobileCLIP2-B", "dfndr2b", None, None, 77, True),
        ("ViT-B-16-SigLIP2", "webli", None, None, 64, False),
        ("PE-Core-B-16", "meta", None, None, 32, True),
    ],
)
def test_shapes_are_those_that_open_clip_publishes(name, tag, millions, gflops, context, is_causal):
    """Parameters and operations are those of open_clip's docs/model_profile.csv."""
    shape = scorer_shape(clip(name, tag))
    assert (shape.context, shape.is_causal) == (context, is_causal)
    if millions is not None:
        assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.01)
        assert (shape.image_flops + shape.text_flops) / 1e9 == pytest.approx(gflops, abs=0.01)


def test_a_hub_id_that_open_clip_lists_has_the_shape_of_its_name():
    hub = clip("hf-hub:timm/vit_large_patch14_clip_336.openai")
    assert scorer_shape(hub) == scorer_shape(clip("ViT-L-14-336", "openai"))
    assert scorer_shape(clip("owner/unknown")) == scorer_shape(clip("s3://bucket/clip")) == TYPICAL


def test_the_weights_of_a_folder_are_counted(tmp_path):
    for kind in ("laion", "siglip2", "pe-core"):
        folder = tiny_clips.write(tmp_path / kind, kind)
        with safe_open(folder / "open_clip_model.safetensors", "pt") as file:
            stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
        assert scorer_shape(clip(str(folder))).parameters == stored


def test_a_configuration_that_cannot_be_built_is_reported():
    with pytest.raises(ModelError, match="open_clip cannot build the CLIP model"):
        shape_of({"vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}, "embed_dim": 8})


def test_a_tower_that_is_not_causal_costs_its_full_context():
    shape = scorer_shape(clip("ViT-B-16-SigLIP2", "webli"))
    assert shape.pair_flops == shape.image_flops + 20 * shape.text_flops
    causal = scorer_shape(clip("ViT-L-14-336", "openai"))
    assert causal.pair_flops == pytest.approx(causal.image_flops + 20 * 16 / 77 * causal.text_flops)


def test_two_scorers_take_the_time_and_memory_of_both():
    first, second = {"ref": "ViT-L-14-336", "pretrained": "openai"}, {"ref": "ViT-B-16-SigLIP2", "pretrained": "webli"}
    settings = config.build(
        {
            "clip": {**first, "second": second},
            "score": {"with_generation": True},
            "generate": {"resources": {"gpus": 1}},
        },
        where="test",
    )
    shapes = [scorer_shape(scorer) for scorer in settings.clip.scorers]
    gpu = rates.GPUS["t4"]
    seconds = rates.score_seconds(100, settings, gpu, settings.clip.scorers)
    assert seconds == pytest.approx(100 * sum(shape.pair_flops for shape in shapes) / (gpu.shares.clip * gpu.flops))
    reserved = devices.generation_capacity(settings, devices.Device("gpu", 80 * 10**9, True)).reserved
    assert reserved == sum(int(shape.bytes) for shape in shapes)


def test_preflight_shows_size_context_and_kind(tmp_path):
    folder = tiny_clips.write(tmp_path / "clip", "siglip")
    (finding,) = models.check_clip(config.RunConfig(), clip(str(folder)))
    assert "images of 32 pixels; sentences over 16 tokens are split, and encoded at the full context" in str(finding)
    (tmp_path / "clip" / "tokenizer.json").unlink()
    (tmp_path / "clip" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        list(models.check_clip(config.RunConfig(), clip(str(folder))))


def test_two_scorers_take_twice_the_time_on_cpus():
    seconds = []
    for second in (None, {"ref": "a/b"}):
        settings = config.build({"clip": {"second": second}}, where="test")
        times = rates.stage_times(settings, workload_of(settings, 10**6), LLAVA, LENGTHS, None, slots=0)
        seconds.append(next(time.seconds for time in times if time.stage == "score"))
    assert seconds[1] == pytest.approx(2 * seconds[0], rel=0.02)  # the start of a replica is the same

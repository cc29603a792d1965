"""CLIP models are found, complete, and loaded with the activation and preprocessing of their weights."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest

from jsfree.errors import ModelError
from jsfree.models.clip import ClipSource, clip_source, load_clip
from jsfree.models.references import WEIGHTS
from tests.support import tiny_clips

OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_clip_requires_a_configuration_and_safetensors(tmp_path):
    folder = Path(shutil.copytree(WEIGHTS / "clip", tmp_path / "clip"))
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(open_clip_pytorch_model.bin\)"):
        load_clip(str(folder))
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no open_clip_config.json"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("name", "tag", "repo", "quick_gelu", "preprocessing"),
    [
        ("ViT-L-14-336", "openai", "timm/vit_large_patch14_clip_336.openai", True, OPENAI),
        ("ViT-L-14-336@main", "openai", "timm/vit_large_patch14_clip_336.openai@main", True, OPENAI),
        ("ViT-H-14", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14", True, {**OPENAI, "resize_mode": "squash"}),
        ("ViT-H-14", "metaclip_fullcc", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", True, OPENAI),
        ("ViT-L-14", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", False, {**OPENAI, **HALF}),
        (
            "ViT-SO400M-16-SigLIP2-384",
            "webli",
            "timm/ViT-SO400M-16-SigLIP2-384",
            False,
            {**HALF, "interpolation": "bicubic", "resize_mode": "squash"},
        ),
        (
            "PE-Core-L-14-336",
            "meta",
            "timm/PE-Core-L-14-336",
            False,
            {**HALF, "interpolation": "bilinear", "resize_mode": "squash"},
        ),
        ("EVA02-L-14-336", "merged2b_s6b_b61k", "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k", False, OPENAI),
        (
            "MobileCLIP2-S0",
            "dfndr2b",
            "timm/MobileCLIP2-S0-OpenCLIP",
            False,
            {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "resize_mode": "shortest"},
        ),
        (
            "ViT-H-14-worldwide-378",
            "metaclip2_worldwide",
            "timm/vit_huge_patch14_clip_378.metaclip2_worldwide",
            False,
            {**OPENAI, "resize_mode": "squash"},
        ),
    ],
)
def test_open_clip_names_resolve_to_hub_models(name, tag, repo, quick_gelu, preprocessing):
    assert clip_source(name, tag) == ClipSource(repo, quick_gelu, preprocessing)


def test_the_activation_of_a_hub_model_follows_from_its_weights():
    for ref in ("hf-hub:apple/DFN5B-CLIP-ViT-H-14", "apple/DFN5B-CLIP-ViT-H-14", "hf-hub:apple/DFN2B-CLIP-ViT-L-14@v1"):
        assert clip_source(ref, None) == ClipSource(ref.removeprefix("hf-hub:"), quick_gelu=True)
    for ref in ("hf-hub:laion/x", "timm/ViT-SO400M-16-SigLIP2-384", "hf-hub:timm/PE-Core-L-14-336"):
        assert clip_source(ref, None) == ClipSource(ref.removeprefix("hf-hub:"))
    for elsewhere in ("miniworld:clip", "s3://bucket/clip", str(WEIGHTS / "clip"), "owner/clip"):
        assert clip_source(elsewhere, None) == ClipSource(elsewhere)


def test_unknown_and_pickled_weights_are_refused():
    with pytest.raises(ModelError, match=r"has no weights 'opneai'; set 'clip.pretrained' to one of openai"):
        clip_source("ViT-L-14-336", "opneai")
    with pytest.raises(ModelError, match="only pickled weights for 'datacomp1b'"):
        clip_source("ViTamin-S", "datacomp1b")


@pytest.mark.parametrize(("kind", "activation"), [("openai", "QuickGELU"), ("laion", "GELU")])
def test_both_towers_have_the_configured_activation(kind, activation, tmp_path):
    model = load_clip(str(tiny_clips.write(tmp_path / "clip", kind))).model
    for tower in (model.transformer, model.visual.transformer):
        assert type(tower.resblocks[0].mlp.gelu).__name__ == activation


def test_the_context_is_that_of_the_model(tmp_path):
    found = {
        kind: load_clip(str(tiny_clips.write(tmp_path / kind, kind))).context_length
        for kind in ("siglip", "pe-core", "siglip2")
    }
    assert found == {"siglip": 16, "pe-core": 32, "siglip2": 64}


def test_a_missing_tokenizer_is_reported(tmp_path):
    folder = tiny_clips.write(tmp_path / "clip", "siglip2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: it uses that of 'in-this-folder'; copy the tokenizer's"):
        load_clip(str(folder))


def test_a_text_tower_that_is_another_hub_model_is_refused_by_name(tmp_path):
    folder = tiny_clips.write(tmp_path / "clip")
    file = folder / "open_clip_config.json"
    settings = json.loads(file.read_text())
    settings["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="its text tower is the model 'xlm-roberta-base'"):
        load_clip(str(folder))


def test_every_hub_model_has_one_activation():
    """Otherwise, the repository would not determine it."""
    found: dict[str, set[bool]] = {}
    for name, tag in open_clip.list_pretrained():
        described = open_clip.get_pretrained_cfg(name, tag)
        repo = described.get("hf_hub", "").rpartition("/")[0]
        if repo:
            found.setdefault(repo, set()).add(bool(described.get("quick_gelu")))
    assert [repo for repo, values in found.items() if len(values) > 1] == []

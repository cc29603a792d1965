"""Models are loaded from safetensors on any filesystem, and incomplete models are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jsfree import config
from jsfree.config import ModelFiles
from jsfree.errors import ConfigError, ModelError
from jsfree.models.loading import describe_captioner, load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.models.saving import publish_captioner
from jsfree.run.folder import Folder
from tests.support.local_hub import LocalHub, Repo


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(WEIGHTS / "captioner", tmp_path / "captioner"))


def test_a_model_loaded_from_a_store_has_the_published_weights(captioner, tmp_path):
    uri, files = f"memory://{tmp_path.name}/round-1/model", ModelFiles(cache=str(tmp_path / "cache"))
    trained = {name: weights + 0.25 for name, weights in captioner.model.state_dict().items()}
    for number, weights in enumerate([None, trained]):
        publish_captioner(captioner.model, captioner.processor, tmp_path / "out", weights, max_shard_size="2MB")
        Folder(uri).remove()
        Folder(uri).upload(str(tmp_path / "out"))
        loaded = load_captioner(uri, files=files).model.state_dict()
        expected = captioner.model.state_dict() if weights is None else weights
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        copies = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
        assert len(copies) == number + 1
        assert len(list(copies[0].glob("model-*.safetensors"))) > 3
    known = json.loads((tmp_path / "out" / "checksums.json").read_text())["files"]
    assert set(known) == {path.name for path in (tmp_path / "out").iterdir()} - {"checksums.json"}


def test_missing_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights.pop("language_model.model.norm.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights are missing in .*captioner, first model.language_model.norm.weight"
    ):
        load_captioner(str(copied))


@pytest.mark.parametrize("name", ["model.safetensors", "processor_config.json", "tokenizer.json"])
def test_truncated_files_raise_a_one_line_error(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:300])
    with pytest.raises(ModelError, match=r"captioner '.*' cannot be loaded from ") as error:
        load_captioner(str(copied))
    assert "\n" not in str(error.value)


def test_a_revision_is_added_to_hub_references_only():
    built = config.build({"captioner": {"ref": "owner/llava", "revision": "v1"}}, where="test")
    assert built.captioner.versioned_ref == "owner/llava@v1"
    assert built.clip.versioned_ref == "miniworld:clip"
    for section in ("captioner", "clip"):
        with pytest.raises(ConfigError, match=f"{section}: 'revision' requires a hub id, but 'ref' is 's3://b/m'"):
            config.build({section: {"ref": "s3://b/m", "revision": "v1"}}, where="test")


def test_the_fingerprint_depends_on_the_revision_but_not_on_the_cache():
    base = config.RunConfig()
    moved = config.build({"models": {"cache": "/big", "offline": True, "commits": {"a/b": "c"}}}, where="test")
    revised = config.build({"captioner": {"ref": "owner/llava", "revision": "v1"}}, where="test")
    unrevised = config.build({"captioner": {"ref": "owner/llava"}}, where="test")
    assert config.differences(base, moved) == []
    assert config.differences(unrevised, revised) == ["captioner.revision: None -> v1"]
    assert unrevised.fingerprint("captioner") != revised.fingerprint("captioner")


FROM_THE_HUB = """
import sys
from jsfree import config
from jsfree.models.references import local_folder
from jsfree.models.contents import CAPTIONER
from jsfree.models.clip import load_clip
from jsfree.run.run import Run
from ray_jobs.pipeline import with_models

run, second = sys.argv[1:]
settings = {
    "run": run,
    "captioner": {"ref": "owner/llava"},
    "clip": {"ref": "ViT-L-14-336", "pretrained": "openai"},
}
begun = with_models(config.build(settings, where="test"))
Run.open(begun)
captioner = local_folder(begun.captioner.versioned_ref, CAPTIONER, begun.models)
clip = load_clip(begun.clip.versioned_ref, pretrained=begun.clip.pretrained, files=begun.models)
print("loaded", flush=True)
input()  # the hub has another commit now
again = with_models(config.build(settings, where="test"))
fresh = with_models(config.build({**settings, "run": second}, where="test"))
print(begun.models.commits)
print(again.models.commits)
print(fresh.models.commits)
print(captioner.name, clip.context_length, type(clip.model.transformer.resblocks[0].mlp.gelu).__name__)
"""


@pytest.mark.slow
def test_a_run_loads_both_models_from_the_hub_and_pins_their_commits(tmp_path):
    def repo(folder):
        return Repo({path.name: path.read_bytes() for path in (WEIGHTS / folder).iterdir()})

    clip = "timm/vit_large_patch14_clip_336.openai"
    with LocalHub({"owner/llava": repo("captioner"), clip: repo("clip")}) as hub:
        first = {name: each.commit for name, each in hub.repos.items()}
        process = subprocess.Popen(
            [sys.executable, "-c", FROM_THE_HUB, str(tmp_path / "run"), str(tmp_path / "second")],
            env=hub.environment(tmp_path, JSFREE_CACHE=str(tmp_path / "cache")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "loaded\n", process.stderr.read()
        hub.repos["owner/llava"].files["README.md"] = b"changed"
        told, errors = process.communicate("\n", timeout=120)
        assert process.returncode == 0, errors
    begun, again, fresh, facts = told.splitlines()
    assert begun == again == str(first)
    assert fresh == str({**first, "owner/llava": hub.repos["owner/llava"].commit})
    assert facts == f"{first['owner/llava']} 16 QuickGELU"
    assert {path.name for path in (tmp_path / "cache" / "hub").glob("models--*")} == {
        "models--owner--llava",
        "models--timm--vit_large_patch14_clip_336.openai",
    }


def test_device_map_auto_gives_the_same_logits():
    laid_out = load_captioner("miniworld:captioner", device_map="auto")
    whole = load_captioner("miniworld:captioner")
    picture = Image.new("RGB", (64, 64), "red")
    inputs = whole.processor(text="<image> Describe image in detail.", images=picture, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(laid_out.model(**inputs).logits, whole.model(**inputs).logits)


@pytest.mark.parametrize("ref", ["miniworld:captioner", "miniworld:qwen-captioner"])
def test_a_captioner_without_weights_renders_and_decodes_as_the_whole_one(ref):
    whole, described = load_captioner(ref), describe_captioner(ref)
    assert all(weight.is_meta for weight in described.model.parameters())
    picture = Image.new("RGB", (90, 40), "teal")
    prompts = [each.prompt("Describe it.", each.inputs(picture)) for each in (whole, described)]
    assert prompts[0].ids == prompts[1].ids
    assert torch.equal(prompts[0].positions, prompts[1].positions)
    assert described.suppressed_ids == whole.suppressed_ids
    assert described.eos_ids == whole.eos_ids
    assert described.decode(prompts[0].ids) == whole.decode(prompts[0].ids)
    # The placeholder becomes the tokens of the image.
    placeholder = set(described.placeholder_ids("Describe it.")) & described.vision_ids
    assert placeholder
    assert [token for token in prompts[0].ids if token not in described.vision_ids] == [
        token for token in described.placeholder_ids("Describe it.") if token not in described.vision_ids
    ]


def test_a_captioner_without_weights_ends_where_its_generation_configuration_says(copied):
    file = copied / "generation_config.json"
    given = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**given, "eos_token_id": [2, 7]}), encoding="utf-8")
    assert describe_captioner(str(copied)).eos_ids == {2, 7}

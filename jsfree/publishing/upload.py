"""Takes a published model to where others find it: a repository of the Hugging Face hub, a folder or a URI.

What goes is what the round's model folder holds, after a look whether it is whole. ``huggingface_hub`` does the
upload: it goes on where it was broken off, splits large folders into several commits, and takes the token from
``HF_TOKEN`` or ``hf auth login``. A copy in a folder gets its checksums first, so that nobody loads it half written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jsfree.errors import ConfigError, ModelError, StorageError
from jsfree.models.contents import ADAPTER, CAPTIONER, CARD, CHECKSUMS, verify_checksums
from jsfree.models.replacing import replace_folder
from jsfree.run.filesystems import reason
from jsfree.run.folder import PARTIAL, Folder
from jsfree.run.locations import is_within, require_outside_runs

SCHEME = "hf://"
NEEDED = (
    *CAPTIONER.parts,
    ("generation_config.json",),
    ("tokenizer_config.json",),
    ("chat_template.jinja", "chat_template.json"),
    (CHECKSUMS,),
)
"""What must be there beside the weights, one name of each group: without it others misread the model."""
NEEDED_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
REPLACED = (CAPTIONER.weights, INDEX, f"{ADAPTER}/*")
"""Files of an earlier upload that go if this one has none of their name, such as shards of another number."""


@dataclass(frozen=True)
class HubRepo:
    """Where on the hub a model goes: a repository, and a branch of it."""

    repo: str
    branch: str | None = None

    @classmethod
    def parse(cls, target: str) -> HubRepo:
        """Read ``hf://owner/name`` or ``hf://owner/name@branch``.

        Raises:
            ConfigError: it is no such address.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        repo, at, branch = target.removeprefix(SCHEME).partition("@")
        if repo.count("/") != 1 or not all(repo.split("/")) or (at and not branch):
            raise ConfigError(f"--to {target!r}: write {SCHEME}owner/name or {SCHEME}owner/name@branch")
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ConfigError(f"--to {target!r}: {repo!r} is no name of a repository of the hub: {error}") from error
        return cls(repo, branch or None)


@dataclass(frozen=True)
class Contents:
    """The files of a model's folder with their bytes, and what is wrong with it, a line each."""

    files: Mapping[str, int]
    missing: list[str]


def contents(folder: Folder, *, adapter: bool) -> Contents:
    """Look through a model's folder without reading its weights.

    Args:
        adapter: whether an adapter must be there too.

    Raises:
        StorageError: it cannot be read.
    """
    files = folder.sizes()
    missing = [" or ".join(group) for group in NEEDED if not set(group) & set(files)]
    missing += [f"{name}, which {INDEX} names" for name in _shards(folder, files) if name not in files]
    if WHOLE not in files and INDEX not in files:
        missing.append(f"{WHOLE}, or {INDEX} with its shards")
    if adapter:
        missing += [path for name in NEEDED_ADAPTER if (path := f"{ADAPTER}/{name}") not in files]
    missing += _of_other_size(folder, "", files) + _of_other_size(folder, f"{ADAPTER}/", files)
    return Contents(files, missing)


def _shards(folder: Folder, files: Mapping[str, int]) -> list[str]:
    return sorted(set(folder.read_json(INDEX).get("weight_map", {}).values())) if INDEX in files else []


def _of_other_size(folder: Folder, within: str, files: Mapping[str, int]) -> list[str]:
    """What the checksums in a folder name, and is not there or has another size."""
    if within + CHECKSUMS not in files:
        return []
    known = folder.read_json(within + CHECKSUMS).get("files", {})
    return [
        f"{within}{name} as {within}{CHECKSUMS} knows it ({entry['bytes']} bytes)"
        for name, entry in known.items()
        if files.get(within + name) != entry["bytes"]
    ]


@contextmanager
def on_this_machine(folder: Folder) -> Iterator[Path]:
    """A model's folder as a local one, verified against its checksums: copied for a while where it is elsewhere.

    Raises:
        ModelError: a file is not what it was when it was published.
        StorageError: it cannot be read, or there is no room for it.
    """
    if folder.is_local:
        verify(Path(folder.path), folder.uri)
        yield Path(folder.path)
        return
    with tempfile.TemporaryDirectory() as directory:
        folder.download(directory)
        verify(Path(directory), folder.uri)
        yield Path(directory)


def verify(local: Path, where: str) -> None:
    """Compare a model's files, and its adapter's, with their checksums.

    Raises:
        ModelError: one of them is another.
    """
    verify_checksums(local, where)
    if (local / ADAPTER).is_dir():
        verify_checksums(local / ADAPTER, f"{where}/{ADAPTER}")


def obstacles(repo: HubRepo) -> list[str]:
    """What would keep this process from uploading anything, as far as it can be told without asking the hub."""
    from huggingface_hub import constants, get_token

    told = []
    if constants.is_offline_mode():
        told.append("a way to the hub: HF_HUB_OFFLINE forbids it; unset it")
    elif get_token() is None:
        told.append(f"a token that may write to {repo.repo.split('/')[0]}: set HF_TOKEN, or run `hf auth login`")
    return told


def make_repo(repo: HubRepo, *, private: bool) -> None:
    """Make the repository and the branch if they are not there; tells at once whether this token may write.

    Raises:
        ModelError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(repo):
        HfApi().create_repo(repo.repo, private=private or None, exist_ok=True)
        if repo.branch is not None:
            HfApi().create_branch(repo.repo, branch=repo.branch, exist_ok=True)


def upload(local: Path, repo: HubRepo, message: str) -> str:
    """Upload a folder; the address of what is there then.

    Raises:
        ModelError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(repo):
        done = HfApi().upload_folder(
            repo_id=repo.repo,
            folder_path=local,
            revision=repo.branch,
            commit_message=message,
            delete_patterns=list(REPLACED),
        )
    return str(done.commit_url)


@contextmanager
def _explained(repo: HubRepo) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    owner = repo.repo.split("/")[0]
    settings = f"{constants.ENDPOINT}/settings/tokens"
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ModelError(f"{obstacles(repo)[0]} is missing", f"tokens are made at {settings}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repo.repo!r} has no branch {repo.branch!r}, and none could be made") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403, 404):
            raise ModelError(
                f"{constants.ENDPOINT} does not let this token write to {repo.repo!r} ({code}): it must have write"
                f" access to {owner!r} ({settings}), and you a member if that is an organization",
                f"or choose another {SCHEME}owner/name",
            ) from error
        raise ModelError(
            f"{repo.repo!r}: {constants.ENDPOINT} answered {code} ({reason(error)})",
            "run the same command again, it goes on where it was",
        ) from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise ModelError(
            f"{repo.repo!r}: {constants.ENDPOINT} cannot be reached ({reason(error)})",
            "check the network, or publish into a folder (--to FOLDER) and upload that from where there is one",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{repo.repo!r} cannot be uploaded: {reason(error)}") from error


def require_free(target: Folder, source: Folder) -> None:
    """See that a folder may be written: it is empty, or holds a model that was published before and nothing else.

    Raises:
        ConfigError: it is the model's own folder, in it or around it, belongs to a run, is a file, or holds something
            else than a model.
    """
    option = f"--to {target.uri}"
    if is_within(target, source) or is_within(source, target):
        raise ConfigError(f"{option}: that is where the model is, {source.uri}", "name another folder")
    require_outside_runs("--to", target)
    names = [name for name in target.names() if not PARTIAL.match(name)]
    if not names and target.is_file():
        raise ConfigError(f"{option} is a file", "name another folder")
    foreign = sorted(set(names) - _published(target)) if names else []
    if foreign:
        raise ConfigError(
            f"{option}: the folder holds something else than a published model ({foreign[0]})", "name another"
        )


def _published(target: Folder) -> set[str]:
    """Names that belong to a published model in a folder; empty where there is none."""
    if not target.exists(CHECKSUMS):
        return set()
    try:
        return {CHECKSUMS, CARD, ADAPTER, *target.read_json(CHECKSUMS)["files"]}
    except (StorageError, KeyError, TypeError):
        return set()


def copy(local: Path, target: Folder) -> None:
    """Copy a model's folder to another place, in place of a model that is there.

    Raises:
        StorageError: it cannot be written, or the model has no checksums.
    """
    if not (local / CHECKSUMS).is_file():
        raise StorageError(f"{local}/{CHECKSUMS} does not exist", "train the model again, or restore its folder")
    replace_folder(target, local)

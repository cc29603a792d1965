"""Publishes a round's model folder: to a repository of the Hugging Face hub, to a folder, or to a URI.

The folder is checked for completeness first. ``huggingface_hub`` uploads it: it resumes an interrupted upload, splits
large folders into several commits, and takes the token from ``HF_TOKEN`` or ``hf auth login``. A copy in a folder is
written with its checksums first, so that a partial copy is never loaded.
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
REQUIRED = (
    *CAPTIONER.parts,
    ("generation_config.json",),
    ("tokenizer_config.json",),
    ("chat_template.jinja", "chat_template.json"),
    (CHECKSUMS,),
)
"""Files required in addition to the weights, one of each group: without them other programs misread the model."""
REQUIRED_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
REPLACED = (CAPTIONER.weights, INDEX, f"{ADAPTER}/*")
"""Files of an earlier upload that are deleted unless replaced, such as additional shards."""


@dataclass(frozen=True)
class HubRepo:
    """A repository of the hub, and optionally a branch of it."""

    repo: str
    branch: str | None = None

    @classmethod
    def parse(cls, target: str) -> HubRepo:
        """Read ``hf://owner/name`` or ``hf://owner/name@branch``.

        Raises:
            ConfigError: it has another form.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        repo, at, branch = target.removeprefix(SCHEME).partition("@")
        if repo.count("/") != 1 or not all(repo.split("/")) or (at and not branch):
            raise ConfigError(
                f"--to {target!r} is not a repository of the hub",
                f"write {SCHEME}owner/name or {SCHEME}owner/name@branch",
            )
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ConfigError(
                f"--to {target!r}: {repo!r} is not a valid repository name", f"use another one: {error}"
            ) from error
        return cls(repo, branch or None)


@dataclass(frozen=True)
class Contents:
    """The files of a model folder with their sizes in bytes, and a line for each missing or damaged file."""

    files: Mapping[str, int]
    missing: list[str]


def contents(folder: Folder, *, adapter: bool) -> Contents:
    """List a model folder and check that it is complete, without reading the weights.

    Args:
        adapter: whether an adapter is required.

    Raises:
        StorageError: it cannot be read.
    """
    files = folder.sizes()
    missing = [" or ".join(group) for group in REQUIRED if not set(group) & set(files)]
    missing += [f"{name}, which {INDEX} lists" for name in _shards(folder, files) if name not in files]
    if WHOLE not in files and INDEX not in files:
        missing.append(f"{WHOLE}, or {INDEX} with its shards")
    if adapter:
        missing += [path for name in REQUIRED_ADAPTER if (path := f"{ADAPTER}/{name}") not in files]
    missing += _wrong_sizes(folder, "", files) + _wrong_sizes(folder, f"{ADAPTER}/", files)
    return Contents(files, missing)


def _shards(folder: Folder, files: Mapping[str, int]) -> list[str]:
    return sorted(set(folder.read_json(INDEX).get("weight_map", {}).values())) if INDEX in files else []


def _wrong_sizes(folder: Folder, within: str, files: Mapping[str, int]) -> list[str]:
    """Files listed in the checksums of a folder that are missing or have another size."""
    if within + CHECKSUMS not in files:
        return []
    listed = folder.read_json(within + CHECKSUMS).get("files", {})
    return [
        f"{within}{name} as listed in {within}{CHECKSUMS} ({entry['bytes']} bytes)"
        for name, entry in listed.items()
        if files.get(within + name) != entry["bytes"]
    ]


@contextmanager
def local_copy(folder: Folder) -> Iterator[Path]:
    """A local copy of a model folder, verified against its checksums; temporary if the folder is remote.

    Raises:
        ModelError: a file has changed since it was published.
        StorageError: it cannot be read, or the disk is full.
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
    """Compare the files of a model and of its adapter with their checksums.

    Raises:
        ModelError: a file differs.
    """
    verify_checksums(local, where)
    if (local / ADAPTER).is_dir():
        verify_checksums(local / ADAPTER, f"{where}/{ADAPTER}")


def obstacles(repo: HubRepo) -> list[str]:
    """What prevents this process from uploading, as far as it is known without contacting the hub."""
    from huggingface_hub import constants, get_token

    missing = []
    if constants.is_offline_mode():
        missing.append("access to the hub: unset HF_HUB_OFFLINE")
    elif get_token() is None:
        missing.append(f"a token with write access to {repo.repo.split('/')[0]}: set HF_TOKEN, or run `hf auth login`")
    return missing


def make_repo(repo: HubRepo, *, private: bool) -> None:
    """Create the repository and the branch unless they exist; fails at once if the token has no write access.

    Raises:
        ModelError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        HfApi().create_repo(repo.repo, private=private or None, exist_ok=True)
        if repo.branch is not None:
            HfApi().create_branch(repo.repo, branch=repo.branch, exist_ok=True)


def upload(local: Path, repo: HubRepo, message: str) -> str:
    """Upload a folder and return the URL of the commit.

    Raises:
        ModelError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        commit = HfApi().upload_folder(
            repo_id=repo.repo,
            folder_path=local,
            revision=repo.branch,
            commit_message=message,
            delete_patterns=list(REPLACED),
        )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repo: HubRepo) -> Iterator[None]:
    """Turn the errors of the hub's client into a ``ModelError`` with a remedy."""
    import httpx2
    from huggingface_hub import constants, errors

    owner = repo.repo.split("/")[0]
    settings = f"{constants.ENDPOINT}/settings/tokens"
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ModelError(
            "there is no token for the hub", f"set HF_TOKEN, or run `hf auth login` (create one at {settings})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repo.repo!r} has no branch {repo.branch!r}, and it cannot be created") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403, 404):
            raise ModelError(
                f"{constants.ENDPOINT} does not let this token write to {repo.repo!r} ({code})",
                f"give it write access to {owner!r} ({settings}; of an organization you must be a member), or choose"
                f" another {SCHEME}owner/name",
            ) from error
        raise ModelError(
            f"{repo.repo!r}: {constants.ENDPOINT} answered {code} ({reason(error)})",
            "run the same command again: the upload resumes",
        ) from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise ModelError(
            f"{repo.repo!r}: {constants.ENDPOINT} cannot be reached ({reason(error)})",
            "check the network, or publish into a folder (--to FOLDER) and upload it from another machine",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{repo.repo!r} cannot be uploaded: {reason(error)}") from error


def check_target(target: Folder, source: Folder) -> None:
    """Check that a folder may be written: it is empty, or contains only a published model.

    Raises:
        ConfigError: it is a file, overlaps the model's own folder, belongs to a run, or contains other files.
    """
    option = f"--to {target.uri}"
    if is_within(target, source) or is_within(source, target):
        raise ConfigError(f"{option} overlaps the model's own folder, {source.uri}", "name another folder")
    require_outside_runs("--to", target)
    names = [name for name in target.names() if not PARTIAL.match(name)]
    if not names and target.is_file():
        raise ConfigError(f"{option} is a file", "name another folder")
    foreign = sorted(set(names) - _published(target)) if names else []
    if foreign:
        raise ConfigError(f"{option} contains other files than a published model ({foreign[0]})", "name another folder")


def _published(target: Folder) -> set[str]:
    """Names of the files of the published model in a folder; empty if there is none."""
    if not target.exists(CHECKSUMS):
        return set()
    try:
        return {CHECKSUMS, CARD, ADAPTER, *target.read_json(CHECKSUMS)["files"]}
    except (StorageError, KeyError, TypeError):
        return set()


def copy(local: Path, target: Folder) -> None:
    """Copy a model folder, replacing a model at the target.

    Raises:
        StorageError: it cannot be written, or the model has no checksums.
    """
    if not (local / CHECKSUMS).is_file():
        raise StorageError(f"{local}/{CHECKSUMS} does not exist", "train the model again, or restore its folder")
    replace_folder(target, local)

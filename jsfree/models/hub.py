"""Resolves and downloads captioners and CLIP models from the Hugging Face hub.

``huggingface_hub`` performs the downloads: it uses ``HF_TOKEN`` or ``hf auth login`` (on every node; jsfree never
stores the token), resumes interrupted downloads and has its own cache. This module adds a lock, so that each node
downloads a model once, a selection of files, checks of disk space and checksums, and errors with remedies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.cache import cache_root, require_space
from jsfree.models.contents import METADATA_PATTERNS, Kind, require, require_folder
from jsfree.run.filesystems import reason

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

log = logging.getLogger(__name__)

CARD_SECONDS = 10.0
"""Timeout for reading a model card, which is optional."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub: its id and a branch, tag or commit."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, ref: str) -> HubModel:
        """Parse ``id`` or ``id@revision``."""
        repo, _, revision = ref.partition("@")
        return cls(repo, revision or None)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def commit_of(model: HubModel, kind: Kind, files: ModelFiles) -> str | None:
    """Resolve the revision of a model to a commit, and check that the model is complete and accessible.

    Returns:
        The commit, or None if the hub is not accessed (offline) and the model is not in the cache of this node; other
        nodes may have it.

    Raises:
        ModelError: the model is missing, gated or incomplete, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_url

    if str(model) in files.commits:
        return files.commits[str(model)]
    with _explained(model, kind, files):
        try:
            commit = _resolve(model, kind, files)
        except ModelError:
            if is_offline(files):
                return None
            raise
        if not is_offline(files) and _cached(model, commit, kind, files) is None:
            require(kind, model.repo, [entry.path for entry in _listing(model, commit)])
            probe = hf_hub_url(model.repo, kind.parts[0][0], revision=commit)
            HfApi().get_hf_file_metadata(
                url=probe
            )  # files of a gated model can be listed, but not read, without access
    return commit


def hub_folder(model: HubModel, kind: Kind, files: ModelFiles) -> Path:
    """Return the local folder of a model, after downloading it if it is not in the cache of this node.

    Raises:
        ModelError: the model is missing, gated, damaged or incomplete, the disk is too small, the hub cannot be
        reached,
            or the model is not in the cache in offline mode.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _explained(model, kind, files), _locked(model, files):
        commit = files.commits.get(str(model)) or _resolve(model, kind, files)
        cached = _cached(model, commit, kind, files)
        if cached is None and is_offline(files):
            raise _not_in_cache(model, kind, files)
        folder = cached or _download(model, commit, kind, files)
        require_folder(kind, str(model), folder)
        return folder


def hub_description(model: HubModel, kind: Kind, files: ModelFiles) -> Path:
    """Return a local folder with the files of a model except its weights, after downloading them if necessary.

    Raises:
        ModelError: as ``hub_folder``.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _explained(model, kind, files):  # without a lock: another process may be downloading the weights
        commit = files.commits.get(str(model)) or _resolve(model, kind, files)
        return Path(
            snapshot_download(
                model.repo,
                revision=commit,
                cache_dir=_hub_cache(files),
                local_files_only=is_offline(files),
                allow_patterns=list(METADATA_PATTERNS),
                ignore_patterns=["*/*"],
            )
        )


def card_data(model: HubModel, files: ModelFiles) -> Mapping[str, Any]:
    """Return the front matter of a model card; empty if it has none or cannot be read."""
    import httpx2
    from huggingface_hub import HfApi

    if is_offline(files):
        return {}
    try:
        card = HfApi().model_info(model.repo, revision=model.revision, timeout=CARD_SECONDS).card_data
    except (httpx2.HTTPError, OSError, ValueError) as error:
        log.warning("%s: the model card cannot be read: %s", model, reason(error))
        return {}
    return {} if card is None else dict(card.to_dict())  # type: ignore[no-untyped-call]


@contextmanager
def _locked(model: HubModel, files: ModelFiles) -> Iterator[None]:
    """Lock the model on this node. There is no lock in offline mode, in which the cache may be read-only."""
    if is_offline(files):
        yield
        return
    locks = _hub_cache(files) / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"jsfree--{model.repo.replace('/', '--')}.lock"):
        yield


def _resolve(model: HubModel, kind: Kind, files: ModelFiles) -> str:
    """Resolve the revision of a model to a commit, with the hub or, in offline mode, the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    try:
        revision = HfApi().resolve_revision(
            model.repo, revision=model.revision, cache_dir=_hub_cache(files), local_files_only=is_offline(files)
        )
    except RevisionResolutionError as error:
        if is_offline(files):
            raise _not_in_cache(model, kind, files) from error
        raise ConnectionError(str(error.__cause__ or error)) from error
    return revision.resolved


def _cached(model: HubModel, commit: str, kind: Kind, files: ModelFiles) -> Path | None:
    """Return the folder of a commit in the cache if it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            model.repo,
            revision=commit,
            cache_dir=_hub_cache(files),
            local_files_only=True,
            allow_patterns=list(kind.patterns),
            ignore_patterns=["*/*"],
        )
        require_folder(kind, str(model), Path(folder))
    except (LocalEntryNotFoundError, ModelError):
        return None
    return Path(folder)


def _download(model: HubModel, commit: str, kind: Kind, files: ModelFiles) -> Path:
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    cache, listing = _hub_cache(files), _listing(model, commit)
    require(kind, model.repo, [entry.path for entry in listing])
    needed = sum(
        entry.size
        for entry in listing
        if kind.takes(entry.path)
        and not isinstance(try_to_load_from_cache(model.repo, entry.path, cache_dir=cache, revision=commit), str)
    )
    require_space(cache, needed, f"{kind.name} {model.repo!r}")
    log.info("downloading %s at %s, %.1f GB", model, commit[:12], needed / 1e9)
    patterns = list(kind.patterns)
    folder = Path(
        snapshot_download(
            model.repo, revision=commit, cache_dir=cache, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    )
    verified = HfApi().verify_repo_checksums(model.repo, revision=commit, cache_dir=cache)
    for wrong in verified.mismatches:
        damaged = folder / wrong["path"]
        damaged.resolve().unlink(missing_ok=True)
        damaged.unlink(missing_ok=True)
        raise ModelError(
            f"{kind.name} {model.repo!r}: {wrong['path']} has {wrong['algorithm']} {wrong['actual'][:12]}... instead of"
            f" {wrong['expected'][:12]}... and was removed from {cache}",
            "try again",
        )
    return folder


def _listing(model: HubModel, commit: str) -> list[RepoFile]:
    from huggingface_hub import HfApi, RepoFile

    return [entry for entry in HfApi().list_repo_tree(model.repo, revision=commit) if isinstance(entry, RepoFile)]


def _hub_cache(files: ModelFiles) -> Path:
    """Return the cache folder of hub models, which has the layout of ``huggingface_hub``."""
    from huggingface_hub import constants

    root = cache_root(files)
    return Path(constants.HF_HUB_CACHE) if root is None else root / "hub"


def is_offline(files: ModelFiles) -> bool:
    """Whether access to the hub is disabled."""
    from huggingface_hub import constants

    return files.offline or constants.is_offline_mode()


def _not_in_cache(model: HubModel, kind: Kind, files: ModelFiles) -> ModelError:
    switch = "models.offline" if files.offline else "HF_HUB_OFFLINE"
    return ModelError(
        f"{kind.name} {str(model)!r} is not complete in the cache {_hub_cache(files)}, and {switch} is set",
        "download it on a machine with network access and the same cache, or use a folder or URI",
    )


@contextmanager
def _explained(model: HubModel, kind: Kind, files: ModelFiles) -> Iterator[None]:
    """Convert exceptions of the hub's client to a ModelError with a remedy."""
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} is gated",
            f"accept its license at {page}, and provide the token of your account on every node (HF_TOKEN, or"
            " `hf auth login`)",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} has no revision {model.revision!r}", f"choose one from {page}/commits"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} is neither a local folder nor a model at {page}",
            "check the name, or provide a token on every node if it is private (HF_TOKEN, or `hf auth login`)",
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} is neither a local folder nor a valid hub id (owner/name)", "check the name"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: {constants.ENDPOINT} answered {error.response.status_code}", "try again later"
        ) from error
    except (httpx2.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: {constants.ENDPOINT} cannot be reached"
            f" ({' '.join(str(error.__cause__ or error).split())[:120]}), and the model is not complete in the cache"
            f" {_hub_cache(files)}",
            "check the network, or use a folder or URI",
        ) from error
    except OSError as error:
        raise ModelError(f"{kind.name} {model.repo!r} cannot be downloaded: {error}") from error

"""Captioners and CLIP models from the Hugging Face hub: which commit a run takes, and its files on this node.

``huggingface_hub`` does the work: it honours ``HF_TOKEN`` and ``hf auth login`` (on every node; the token is never
stored by jsfree), resumes what was interrupted and keeps its own cache. Added here: one download a node however
many processes ask, only the files of the model, a check of the disk before and of the content after, and errors
that say what to do.
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
from jsfree.models.contents import BESIDE_WEIGHTS, Kind, require, require_folder
from jsfree.run.filesystems import reason

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

log = logging.getLogger(__name__)

CARD_SECONDS = 10.0
"""How long the hub may take to say a model's licence, which a run can do without."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub: its id, and a branch, tag or commit of it."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, ref: str) -> HubModel:
        """Read ``id`` or ``id@revision``."""
        repo, _, revision = ref.partition("@")
        return cls(repo, revision or None)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def commit_of(model: HubModel, kind: Kind, files: ModelFiles) -> str | None:
    """The commit that a run takes, after a look whether the model is there, whole and open to this token.

    None when nothing can be asked (offline) and it is not in this node's cache: other nodes may have it.

    Raises:
        ModelError: the model is missing, gated, not whole, or the hub cannot be reached.
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
            HfApi().get_hf_file_metadata(url=probe)  # a gated model lists its files to all, but gives them to few
    return commit


def hub_folder(model: HubModel, kind: Kind, files: ModelFiles) -> Path:
    """The local folder of a model, fetched once a node.

    Raises:
        ModelError: the model is missing, gated, damaged or not whole, the disk is too small for it, the hub cannot
            be reached, or it is offline and not in the cache.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _explained(model, kind, files), _locked(model, files):
        commit = files.commits.get(str(model)) or _resolve(model, kind, files)
        found = _cached(model, commit, kind, files)
        if found is None and is_offline(files):
            raise ModelError(_not_in_cache(model, kind, files))
        folder = found or _fetch(model, commit, kind, files)
        require_folder(kind, str(model), folder)
        return folder


def hub_description(model: HubModel, kind: Kind, files: ModelFiles) -> Path:
    """A local folder with what a model's folder holds beside weights, fetched if need be: some megabytes.

    Raises:
        ModelError: as ``hub_folder``.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _explained(model, kind, files):  # not locked: another process may be fetching the weights
        commit = files.commits.get(str(model)) or _resolve(model, kind, files)
        return Path(
            snapshot_download(
                model.repo,
                revision=commit,
                cache_dir=_hub_cache(files),
                local_files_only=is_offline(files),
                allow_patterns=list(BESIDE_WEIGHTS),
                ignore_patterns=["*/*"],
            )
        )


def card_data(model: HubModel, files: ModelFiles) -> Mapping[str, Any]:
    """The front matter of a model's card; empty where the hub cannot be asked, or says nothing."""
    import httpx2
    from huggingface_hub import HfApi

    if is_offline(files):
        return {}
    try:
        card = HfApi().model_info(model.repo, revision=model.revision, timeout=CARD_SECONDS).card_data
    except (httpx2.HTTPError, OSError, ValueError) as error:
        log.warning("%s: its licence is not known: %s", model, reason(error))
        return {}
    return {} if card is None else dict(card.to_dict())  # type: ignore[no-untyped-call]


@contextmanager
def _locked(model: HubModel, files: ModelFiles) -> Iterator[None]:
    """One process of a node at a time; offline nothing is written, and the cache may be read-only."""
    if is_offline(files):
        yield
        return
    locks = _hub_cache(files) / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"jsfree--{model.repo.replace('/', '--')}.lock"):
        yield


def _resolve(model: HubModel, kind: Kind, files: ModelFiles) -> str:
    """The commit of a model's revision: the hub's, or the cache's when that is all that can be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    try:
        found = HfApi().resolve_revision(
            model.repo, revision=model.revision, cache_dir=_hub_cache(files), local_files_only=is_offline(files)
        )
    except RevisionResolutionError as error:
        if is_offline(files):
            raise ModelError(_not_in_cache(model, kind, files)) from error
        raise ConnectionError(str(error.__cause__ or error)) from error
    return found.resolved


def _cached(model: HubModel, commit: str, kind: Kind, files: ModelFiles) -> Path | None:
    """The commit's folder in the cache if it is whole."""
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


def _fetch(model: HubModel, commit: str, kind: Kind, files: ModelFiles) -> Path:
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
    log.info("fetching %s at %s, %.1f GB", model, commit[:12], needed / 1e9)
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
            f"{kind.name} {model.repo!r}: {wrong['path']} came with {wrong['algorithm']} {wrong['actual'][:12]}..., the"
            f" hub says {wrong['expected'][:12]}...",
            f"it was removed from {cache}: try again",
        )
    return folder


def _listing(model: HubModel, commit: str) -> list[RepoFile]:
    from huggingface_hub import HfApi, RepoFile

    return [entry for entry in HfApi().list_repo_tree(model.repo, revision=commit) if isinstance(entry, RepoFile)]


def _hub_cache(files: ModelFiles) -> Path:
    """Where hub models are kept, in the layout of ``huggingface_hub``."""
    from huggingface_hub import constants

    root = cache_root(files)
    return Path(constants.HF_HUB_CACHE) if root is None else root / "hub"


def is_offline(files: ModelFiles) -> bool:
    """Whether no hub may be asked."""
    from huggingface_hub import constants

    return files.offline or constants.is_offline_mode()


def _not_in_cache(model: HubModel, kind: Kind, files: ModelFiles) -> str:
    switch = "models.offline" if files.offline else "HF_HUB_OFFLINE"
    return (
        f"{kind.name} {str(model)!r} is not, or not whole, in the cache {_hub_cache(files)} and {switch} forbids to"
        " fetch it; fetch it once where there is a network with the same cache, or give a folder or URI instead"
    )


@contextmanager
def _explained(model: HubModel, kind: Kind, files: ModelFiles) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    import httpx2  # what the client itself speaks HTTP with
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} is gated: accept its licence at {page} with your account, and give the"
            " account's token to every node (HF_TOKEN, or `hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r} has no revision {model.revision!r}", f"see {page}/commits"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: there is no such folder here and no such model at {page}",
            "check the name, or give its token to every node if it is private (HF_TOKEN, or `hf auth login`)",
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: there is no such folder, and it is no name of a hub model (owner/name)"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: {constants.ENDPOINT} answered {error.response.status_code}", "try again later"
        ) from error
    except (httpx2.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:
        raise ModelError(
            f"{kind.name} {model.repo!r}: {constants.ENDPOINT} cannot be reached"
            f" ({' '.join(str(error.__cause__ or error).split())[:120]}), and it is not whole in the cache"
            f" {_hub_cache(files)}",
            "check the network, or give a folder or URI instead",
        ) from error
    except OSError as error:
        raise ModelError(f"{kind.name} {model.repo!r} cannot be fetched: {error}") from error

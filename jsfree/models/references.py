"""Turns the reference of a model into a local folder that holds it.

- ``miniworld:captioner`` and ``miniworld:clip``: the tiny models shipped with jsfree;
- a local folder, used where it is;
- ``s3://...``, ``gs://...`` or any other fsspec URI of a folder, such as a round's model in a run: copied once
  into the node's cache;
- ``owner/name`` or ``owner/name@revision``: a model of the Hugging Face hub, fetched once into the node's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.cache import RemoteFolder, fetched
from jsfree.models.contents import Kind, require_folder
from jsfree.models.hub import HubModel, commit_of, hub_description, hub_folder
from jsfree.uris import PACKAGED, has_scheme, is_hub_syntax, is_written_as_path

WEIGHTS = Path(__file__).parents[1] / "miniworld" / "weights"


def local_folder(ref: str, kind: Kind, files: ModelFiles | None = None) -> Path:
    """The local folder of a model, fetched if need be; safe to call from many processes at once.

    Raises:
        ModelError: the reference leads nowhere, or to no whole model; the message says what to do.
    """
    files = files or ModelFiles()
    found = _on_this_machine(ref, kind)
    if found is not None:
        return found
    return fetched(ref, kind, files) if has_scheme(ref) else hub_folder(HubModel.parse(ref), kind, files)


@contextmanager
def description_folder(ref: str, kind: Kind, files: ModelFiles | None = None) -> Iterator[Path]:
    """A local folder with what a model's folder holds beside its weights; these are not fetched.

    Raises:
        ModelError: as ``local_folder``.
    """
    files = files or ModelFiles()
    found = _on_this_machine(ref, kind)
    if found is not None:
        yield found
    elif not has_scheme(ref):
        yield hub_description(HubModel.parse(ref), kind, files)
    else:
        with TemporaryDirectory(prefix="jsfree-model-") as folder:
            RemoteFolder(ref, kind).copy_to(Path(folder), weights=False)
            yield Path(folder)


def look_up(ref: str, kind: Kind, files: ModelFiles | None = None) -> dict[str, str]:
    """Check without fetching that a model is there, so that a missing one is not found out by a worker.

    The commits of hub models by reference, for ``ModelFiles.commits``; empty for others.

    Raises:
        ModelError: as ``local_folder``, as far as it can be told from here.
    """
    files = files or ModelFiles()
    if _on_this_machine(ref, kind) is not None:
        return {}
    if has_scheme(ref):
        RemoteFolder(ref, kind).require()
        return {}
    commit = commit_of(HubModel.parse(ref), kind, files)
    return {} if commit is None else {ref: commit}


def hub_model(ref: str, files: ModelFiles) -> HubModel | None:
    """The model of the hub that a reference names, at the commit that the run keeps to; None for all others."""
    if not is_hub_syntax(ref) or Path(ref).is_dir():
        return None
    model = HubModel.parse(ref)
    return HubModel(model.repo, files.commits.get(ref, model.revision))


def _on_this_machine(ref: str, kind: Kind) -> Path | None:
    """The folder that a packaged name or a path leads to; None for what is elsewhere."""
    if ref.startswith(PACKAGED):
        path = WEIGHTS / ref.removeprefix(PACKAGED)
    elif ref.startswith("file://"):
        path = Path(ref.removeprefix("file://"))
    elif not has_scheme(ref) and (is_written_as_path(ref) or Path(ref).is_dir()):
        path = Path(ref).expanduser()
    else:
        return None
    if not path.is_dir():
        raise ModelError(f"{kind.name} {ref!r}: there is no folder {path}")
    require_folder(kind, ref, path)
    return path

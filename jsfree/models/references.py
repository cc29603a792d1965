"""Resolves model references to local folders.

- ``miniworld:captioner`` and ``miniworld:clip``, ``miniworld:prose-captioner`` and ``miniworld:prose-clip``,
``miniworld:qwen-captioner``: the tiny models shipped with jsfree.
- A local folder, which is used in place.
- ``s3://...``, ``gs://...`` or any other fsspec URI of a folder, for example a model in a run: downloaded once per
node.
- ``owner/name`` or ``owner/name@revision``: a model on the Hugging Face hub, downloaded once per node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.cache import RemoteFolder, download
from jsfree.models.contents import Kind, require_folder
from jsfree.models.hub import HubModel, commit_of, hub_description, hub_folder
from jsfree.uris import PACKAGED, has_scheme, is_hub_syntax, is_written_as_path

WEIGHTS = Path(__file__).parents[1] / "miniworld" / "weights"


def local_folder(ref: str, kind: Kind, files: ModelFiles | None = None) -> Path:
    """Return the local folder of a model, after downloading it if necessary. Safe to call from many processes.

    Raises:
        ModelError: the model does not exist or is incomplete, or cannot be downloaded.
    """
    files = files or ModelFiles()
    folder = _folder_in_place(ref, kind)
    if folder is not None:
        return folder
    return download(ref, kind, files) if has_scheme(ref) else hub_folder(HubModel.parse(ref), kind, files)


@contextmanager
def description_folder(ref: str, kind: Kind, files: ModelFiles | None = None) -> Iterator[Path]:
    """Provide a local folder with the files of a model except its weights, which are not downloaded.

    Raises:
        ModelError: as ``local_folder``.
    """
    files = files or ModelFiles()
    local = _folder_in_place(ref, kind)
    if local is not None:
        yield local
    elif not has_scheme(ref):
        yield hub_description(HubModel.parse(ref), kind, files)
    else:
        with TemporaryDirectory(prefix="jsfree-model-") as folder:
            RemoteFolder(ref, kind).copy_to(Path(folder), weights=False)
            yield Path(folder)


def look_up(ref: str, kind: Kind, files: ModelFiles | None = None) -> dict[str, str]:
    """Check that a model exists and is complete, without downloading it.

    Returns:
        The commit of a hub model by reference, for ``ModelFiles.commits``; empty for other models.

    Raises:
        ModelError: as ``local_folder``, as far as it can be determined without the weights.
    """
    files = files or ModelFiles()
    if _folder_in_place(ref, kind) is not None:
        return {}
    if has_scheme(ref):
        RemoteFolder(ref, kind).require()
        return {}
    commit = commit_of(HubModel.parse(ref), kind, files)
    return {} if commit is None else {ref: commit}


def hub_model(ref: str, files: ModelFiles) -> HubModel | None:
    """Return the hub model of a reference, at the commit recorded in the run; None for other references."""
    if not is_hub_syntax(ref) or Path(ref).is_dir():
        return None
    model = HubModel.parse(ref)
    return HubModel(model.repo, files.commits.get(ref, model.revision))


def _folder_in_place(ref: str, kind: Kind) -> Path | None:
    """Return the folder of a packaged model or a local path; None for remote models."""
    if ref.startswith(PACKAGED):
        path = WEIGHTS / ref.removeprefix(PACKAGED)
    elif ref.startswith("file://"):
        path = Path(ref.removeprefix("file://"))
    elif not has_scheme(ref) and (is_written_as_path(ref) or Path(ref).is_dir()):
        path = Path(ref).expanduser()
    else:
        return None
    if not path.is_dir():
        raise ModelError(f"{kind.name} {ref!r}: there is no folder {path}", "check the path")
    require_folder(kind, ref, path)
    return path

"""Keeps the image paths of a data file inside the folder that its user configured.

Somebody else's JSON or Parquet file may name ``../../home/x.png``, ``/etc/x.png`` or a file on another host. Unless
``allow_outside`` is set, a row of ``source`` or ``imported`` may only name images in its ``images``, or without it in
the folder of its ``path``. Spelling is checked when rows are listed. Symbolic links are followed whenever an image of
a source is read, because links can change and the driver may not see them; those of imported records when they are
imported.
"""

from __future__ import annotations

import os
import posixpath
from typing import NamedTuple
from urllib.parse import unquote

import fsspec
from fsspec.core import split_protocol

from jsfree.config import Source
from jsfree.errors import RowError
from jsfree.images.ranges import Cell, Part, file_of, part_at
from jsfree.run.filesystems import filesystem_of, is_chain
from jsfree.uris import has_scheme, is_remote, local_path

KINDS = ("llava_json", "parquet")
"""Kinds of sources whose data name paths."""


class Confinement(NamedTuple):
    """Where the images may be that a data file names.

    Attributes:
        folder: an absolute path or a URI.
        allow_outside: whether they may be anywhere.
        section: of the configuration, whose ``images`` and ``allow_outside`` a message names.
    """

    folder: str
    allow_outside: bool
    section: str


def confinement_of(source: Source) -> Confinement:
    """Where the images may be that the data of ``source`` name."""
    return Confinement(confining_folder(source), source.allow_outside, "source")


def check_spelling(uri: str, confinement: Confinement, name: str) -> None:
    """See that ``uri`` lies in the folder by its spelling; ``name`` is what the row calls it.

    Raises:
        RowError: it does not (``outside``), and that is not allowed.
    """
    if not confinement.allow_outside and not is_inside(uri, confinement.folder):
        raise _outside(name, confinement)


def check_links(uri: str, confinement: Confinement, name: str) -> None:
    """See that an image, spelled as inside of the folder, is inside once its address is resolved.

    Symbolic links of a local one are followed; of a part of a file (``ranges``) the file decides.

    Raises:
        RowError: a link leads out of the folder (``outside``), and that is not allowed.
    """
    if confinement.allow_outside:
        return
    file, folder = file_of(uri), confinement.folder
    if file != uri:
        check_spelling(file, confinement, name)
    if not is_remote(folder) and not _is_below(_real(file), _real(folder)):
        raise _outside(name, confinement)


def check_source_links(uri: str | None, source: Source) -> None:
    """``check_links`` of an image that is about to be read, if the data of ``source`` name it.

    Raises:
        RowError: as ``check_links``.
    """
    if uri is None or source.allow_outside or source.kind not in KINDS or source.path is None:
        return
    part = part_at(uri)
    if isinstance(part, Part | Cell):
        return  # a part of the source's own file
    confinement = confinement_of(source)
    if is_inside(uri if part is None else part.file, confinement.folder):  # else of another source
        check_links(uri, confinement, uri)


def confining_folder(source: Source) -> str:
    """The folder that images named in the data of ``source`` must lie in: absolute, or a URI."""
    if source.images:
        return absolute(source.images)
    path = str(source.path)
    if is_remote(path):
        is_folder = source.kind == "parquet" and not path.endswith(".parquet")
        return path.rstrip("/") if is_folder else posixpath.dirname(path)
    path = filesystem_of(path)[1]
    return path if source.kind == "parquet" and os.path.isdir(path) else posixpath.dirname(path)


def absolute(folder: str) -> str:
    """A folder as every worker of a cluster finds it, whatever its working directory: absolute, or a URI."""
    return folder.rstrip("/") if has_scheme(folder) else os.path.abspath(filesystem_of(folder)[1])


def is_inside(uri: str, folder: str) -> bool:
    """Whether an absolute path or URI lies in ``folder`` by its spelling."""
    if is_remote(folder):
        return has_scheme(uri) and _is_remote_inside(uri, folder)
    if uri.startswith(f"{folder}/") and ".." not in uri:
        return True
    if is_remote(uri):
        return False
    path, local = posixpath.normpath(local_path(uri)), local_path(folder)
    return _is_below(path, posixpath.normpath(local)) or _is_below(path, os.path.realpath(local))


def _is_remote_inside(uri: str, folder: str) -> bool:
    protocol, other = split_protocol(folder)[0], split_protocol(uri)[0]
    if any(ord(character) < 32 for character in uri):  # clients drop them, which would join what they part
        return False
    if protocol != other or ".." in unquote(uri).split("/") or is_chain(uri.removeprefix(folder)):
        return False
    if uri.startswith(f"{folder}/"):
        return True
    try:
        kind = fsspec.get_filesystem_class(protocol)  # the class alone: an instance may connect to a foreign host
    except (ImportError, ValueError):  # nobody can read it
        return False
    if kind._get_kwargs_from_urls(uri) != kind._get_kwargs_from_urls(folder):
        return False
    return _is_below(str(kind._strip_protocol(uri)), str(kind._strip_protocol(folder)))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _real(path: str) -> str:
    return os.path.realpath(local_path(path))


def _outside(name: str, confinement: Confinement) -> RowError:
    folder, section = confinement.folder, confinement.section
    return RowError(
        "outside",
        f"the image {name[:200]!r} is outside {folder}",
        f"move it there, set '{section}.images' to a folder that holds"
        f" all images, or set '{section}.allow_outside' if you trust the records",
    )

"""Imports records of other projects as preference pairs; an unusable record comes with its error."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsfree.config import Imported
from jsfree.errors import RowError, SourceError
from jsfree.exchange.formats import FORMATS, Fields
from jsfree.exchange.preferences import MARKER, Preference, without_marker
from jsfree.exchange.records import ReadRecord, configured_folder, records
from jsfree.images.confinement import Confinement, absolute, check_links
from jsfree.images.listing import image_uri
from jsfree.images.tables import MAX_EMBEDDED_BYTES
from jsfree.schemas import ImageRef, sample_id
from jsfree.texts import printable, require_text
from jsfree.uris import local_path

MAX_TOKEN_CHARACTERS = 256
"""Most characters per token; longer texts are refused before they are tokenized."""


@dataclass(frozen=True)
class UnusableRecord:
    """A record that is not a valid pair: an id and the error, both printable whatever the record contains."""

    id: str
    error: RowError


def preferences(settings: Imported) -> Iterator[Preference | UnusableRecord]:
    """Yield the pairs of ``settings.path``, in the order of files and rows.

    A pair's id is the record's own if the format has one, else file and row. Of several records with the same id and
    prompt the first is used.

    Raises:
        SourceError: the path is missing or unreadable, has no records, is not of the format, or has more bytes of
            embedded images than a run can store.
    """
    seen: dict[str, str] = {}
    embedded, read = 0, None
    confinement = _confinement(settings)
    for read in records(settings):
        where = f"{read.file.shown}, row {read.row}"
        try:
            pair = _pair(read, settings, confinement)
            name = sample_id(pair.id, pair.prompt)
            if name in seen:
                shown = printable(repr(pair.id))
                raise RowError("duplicate_id", f"key 'id' or 'idx' is {shown}, as in {seen[name]}", "make it unique")
        except RowError as error:
            yield UnusableRecord(
                _name(read), RowError(error.kind, f"{where}: {printable(error.problem)}", printable(error.remedy))
            )
        else:
            seen[name] = where
            embedded += len(pair.image["bytes"] or b"")
            _check_size(embedded, settings)
            yield pair
    if read is None:
        raise SourceError(f"{settings.path} has no records", "correct 'imported.path'")


def _name(read: ReadRecord) -> str:
    """The id of a record that has none of its own."""
    return f"{printable(read.file.name)}:{read.row}"


def _pair(read: ReadRecord, settings: Imported, confinement: Confinement) -> Preference:
    if isinstance(read.record, RowError):
        raise read.record
    layout = FORMATS[settings.format]
    fields = layout.read(read.record)
    name = fields.id or _name(read)
    prompt = without_marker(fields.prompt, layout.named[0])
    texts = {"prompt": prompt, "chosen": fields.chosen.strip(), "rejected": fields.rejected.strip()}
    longest = MAX_TOKEN_CHARACTERS * settings.max_tokens
    for key, (what, text) in zip(layout.named, texts.items(), strict=True):
        if not text:
            raise RowError(f"empty_{what}", f"the {what} (key {key!r}) is empty", "remove the row")
        if MARKER in text:
            raise RowError("image_marker", f"the {what} (key {key!r}) holds {MARKER!r}", "remove it")
        if len(text) > longest:
            raise RowError(
                "too_long",
                f"the {what} (key {key!r}) has {len(text)} characters, the limit is {longest}"
                f" ({MAX_TOKEN_CHARACTERS} for each of 'imported.max_tokens')",
                "remove the row",
            )
    start = confinement.folder if settings.images else posixpath.dirname(read.file.address)
    image = _image(name, fields, start, confinement)
    return Preference(name, image, prompt, texts["chosen"], texts["rejected"])


def _check_size(embedded: int, settings: Imported) -> None:
    if embedded > MAX_EMBEDDED_BYTES:
        raise SourceError(
            f"{settings.path} holds more than {MAX_EMBEDDED_BYTES / 1e9:.0f} GB of images, too much for the run's"
            " tables",
            "put the images into files and their paths into the records, or import fewer records",
        )


def _confinement(settings: Imported) -> Confinement:
    """The folder that images must be in; absolute, because workers have other working directories."""
    folder = absolute(settings.images) if settings.images else configured_folder(settings)
    return Confinement(folder, settings.allow_outside, "imported")


def _image(name: str, fields: Fields, start: str, confinement: Confinement) -> ImageRef:
    image = fields.image
    content: Any = image.get("bytes") if isinstance(image, Mapping) else image if isinstance(image, bytes) else None
    if isinstance(content, bytes) and content:
        return {"id": name, "uri": None, "bytes": content, "sha256": hashlib.sha256(content).hexdigest()}
    path = image.get("path") if isinstance(image, Mapping) else image
    if path is None or path == "":
        raise RowError("no_image", "the image (key 'image' or 'images') is empty", "remove the row")
    if not isinstance(path, str):
        raise RowError("malformed", f"the image (key 'image' or 'images') is {type(path).__name__}, expected one path")
    path = require_text(path, "the image (key 'image' or 'images')")
    uri = require_text(imported_uri(path, start, confinement), "the image's path")
    return {"id": name, "uri": uri, "bytes": None, "sha256": None}


def imported_uri(path: str, start: str, confinement: Confinement) -> str:
    """The URI of a record's image; symbolic links are resolved now, because later stages do not.

    Raises:
        RowError: ``malformed`` or ``outside``, as ``image_uri`` and ``check_links``.
    """
    uri = local_path(image_uri(path, start, confinement))
    check_links(uri, confinement, path)
    return uri

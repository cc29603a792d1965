"""Records of other projects as preference pairs: each either usable, or with what is wrong with it."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsfree.config import Imported
from jsfree.errors import RowError, SourceError
from jsfree.exchange.formats import FORMATS, Parts
from jsfree.exchange.preferences import MARKER, Preference, without_marker
from jsfree.exchange.records import Found, configured_folder, records
from jsfree.images.confinement import Confinement, absolute, check_links
from jsfree.images.listing import image_uri
from jsfree.images.tables import MAX_EMBEDDED_BYTES
from jsfree.schemas import ImageRef, sample_id
from jsfree.texts import printable, require_text
from jsfree.uris import local_path

MAX_TOKEN_CHARACTERS = 256
"""Characters that a token may stand for; longer texts are refused before a tokenizer has to read them."""


@dataclass(frozen=True)
class Unusable:
    """A record that is no pair: a name for it, and why; both can be written to a table whatever the record holds."""

    id: str
    error: RowError


def preferences(settings: Imported) -> Iterator[Preference | Unusable]:
    """The pairs of ``settings.path``, in the order of files and rows.

    A pair's id is the record's own where the format has one, else file and row. Of several records with one id and
    one prompt the first is used.

    Raises:
        SourceError: the path is missing or unreadable, holds no record, is not of the format, or holds more bytes of
            images than a run carries.
    """
    seen: dict[str, str] = {}
    embedded, found = 0, None
    confinement = _confinement(settings)
    for found in records(settings):
        where = f"{found.file.shown}, row {found.row}"
        try:
            pair = _pair(found, settings, confinement)
            name = sample_id(pair.id, pair.prompt)
            if name in seen:
                told = printable(repr(pair.id))
                raise RowError("duplicate_id", f"key 'id' or 'idx' is {told}, as in {seen[name]}", "make it unique")
        except RowError as error:
            yield Unusable(
                _name(found), RowError(error.kind, f"{where}: {printable(error.problem)}", printable(error.remedy))
            )
        else:
            seen[name] = where
            embedded += len(pair.image["bytes"] or b"")
            _require_room(embedded, settings)
            yield pair
    if found is None:
        raise SourceError(f"{settings.path} holds no records", "correct 'imported.path'")


def _name(found: Found) -> str:
    """A name for a record without an id of its own."""
    return f"{printable(found.file.name)}:{found.row}"


def _pair(found: Found, settings: Imported, confinement: Confinement) -> Preference:
    if isinstance(found.record, RowError):
        raise found.record
    layout = FORMATS[settings.format]
    parts = layout.read(found.record)
    name = parts.id or _name(found)
    prompt = without_marker(parts.prompt, layout.named[0])
    texts = {"prompt": prompt, "chosen": parts.chosen.strip(), "rejected": parts.rejected.strip()}
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
    start = confinement.folder if settings.images else posixpath.dirname(found.file.address)
    image = _image(name, parts, start, confinement)
    return Preference(name, image, prompt, texts["chosen"], texts["rejected"])


def _require_room(embedded: int, settings: Imported) -> None:
    if embedded > MAX_EMBEDDED_BYTES:
        raise SourceError(
            f"{settings.path} holds more than {MAX_EMBEDDED_BYTES / 1e9:.0f} GB of images, which a run's tables would"
            " carry",
            "put the images into files and their paths into the records, or import a part of them",
        )


def _confinement(settings: Imported) -> Confinement:
    """Where images may be; ``imported.images`` is made absolute, because workers have other working directories."""
    folder = absolute(settings.images) if settings.images else configured_folder(settings)
    return Confinement(folder, settings.allow_outside, "imported")


def _image(name: str, parts: Parts, start: str, confinement: Confinement) -> ImageRef:
    image = parts.image
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
    """Where the image of a record is; symbolic links are followed now, because later stages do not.

    Raises:
        RowError: ``malformed`` or ``outside``, as ``image_uri`` and ``check_links``.
    """
    uri = local_path(image_uri(path, start, confinement))
    check_links(uri, confinement, path)
    return uri

"""Files in a model folder: which are used, which are required, and their checksums.

Only safetensors, JSON and tokenizer files at the top level of the folder are used. Pickled weights are not, because
loading them can execute code. Folders published by jsfree contain ``checksums.json``:

    {"files": {"model.safetensors": {"bytes": 26700000000, "sha256": "..."}, ...}}

The model card ``README.md`` is written later; it has no checksum and is not downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jsfree.errors import ModelError
from jsfree.models.families.refusals import require_type as require_supported

CHECKSUMS = "checksums.json"
CARD = "README.md"
ADAPTER = "adapter"
"""Subfolder with the adapter of a model that was trained with LoRA."""
METADATA_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack")
HASHED_AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: name in messages.
        weights: pattern of the weight files.
        parts: groups of other files; one file of each group is required.
        is_captioner: whether ``config.json`` must name a model of a supported family.
    """

    name: str
    weights: str
    parts: tuple[tuple[str, ...], ...]
    is_captioner: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the files that belong to a model."""
        return (self.weights, *METADATA_PATTERNS)

    def takes(self, name: str) -> bool:
        """Whether a file belongs to the model; ``name`` is relative to the folder."""
        return "/" not in name and any(fnmatchcase(name, pattern) for pattern in self.patterns)


CAPTIONER = Kind(
    "captioner",
    "model*.safetensors",
    (
        ("config.json",),
        ("processor_config.json", "preprocessor_config.json"),
        ("tokenizer.json", "tokenizer.model"),
    ),
    is_captioner=True,
)
CLIP = Kind("CLIP", "open_clip*.safetensors", (("open_clip_config.json",),))


def require(kind: Kind, where: str, names: Collection[str], read: Callable[[str], bytes] | None = None) -> None:
    """Check that a model has all required files.

    Args:
        where: the folder or hub id, for error messages.
        names: names of the existing files, relative to the folder.
        read: reads a file, to check the shards of an index and the model type. Without it, only names are checked.

    Raises:
        ModelError: a file is missing, the weights are pickled, or the model is of another type.
    """
    for group in kind.parts:
        if not set(group) & set(names):
            raise ModelError(f"{kind.name} {where!r} has no {' or '.join(group)}", "use a complete model of this kind")
    if read is not None:
        require_type(kind, where, read)
    _require_weights(kind, where, names, read)


def require_type(kind: Kind, where: str, read: Callable[[str], bytes]) -> None:
    """Check that a captioner is of a supported family, by the model type in ``config.json``.

    Raises:
        ModelError: the model is of another type.
    """
    if kind.is_captioner:
        model_type = _read_json(read, "config.json", where).get("model_type")
        require_supported(model_type, f"{kind.name} {where!r}")


def _require_weights(kind: Kind, where: str, names: Collection[str], read: Callable[[str], bytes] | None) -> None:
    index = kind.weights.replace("*", "") + ".index.json"
    if index in names and read is not None:
        shards = set(_read_json(read, index, where).get("weight_map", {}).values())
        missing = sorted(shards - set(names))
        if missing:
            raise ModelError(
                f"{kind.name} {where!r} has no {missing[0]}, one of the {len(shards)} files in {index}",
                "copy or download it again",
            )
    if any(fnmatchcase(name, kind.weights) for name in names):
        return
    pickled = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLED))
    if pickled:
        raise ModelError(
            f"{kind.name} {where!r} has only pickled weights ({pickled[0]}), which can execute code when loaded",
            f"use a revision with safetensors, or convert it to {kind.weights}",
        )
    raise ModelError(f"{kind.name} {where!r} has no weights ({kind.weights})", "copy or download it again")


def require_folder(kind: Kind, where: str, folder: Path) -> None:
    """Check the files of a local model, and their sizes if the folder has ``checksums.json``.

    Raises:
        ModelError: as ``require``, or the size of a file is wrong.
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    require(kind, where, names, lambda name: (folder / name).read_bytes())
    for name, known in published_checksums(folder, where).items():
        if name not in names:
            raise ModelError(
                f"{kind.name} {where!r} has no {name}, which is in its {CHECKSUMS}", "publish or copy it again"
            )
        size = (folder / name).stat().st_size
        if size != known["bytes"]:
            raise ModelError(
                f"{kind.name} {where!r}: {name} has {size} bytes instead of {known['bytes']} ({CHECKSUMS})",
                "copy it again",
            )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of the tensors in a safetensors file from its header.

    Raises:
        ModelError: the file is not in this format, or its size is not the one that its header gives.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ModelError(f"{path} is not a complete safetensors file ({error})", "fetch or copy it again") from error


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json`` for all files of a folder except the model card."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (CHECKSUMS, CARD))
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, _digests(files), strict=True)
    }
    (folder / CHECKSUMS).write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")


def verify_checksums(folder: Path, where: str) -> None:
    """Compare the files of a downloaded folder with its ``checksums.json``, if it has one.

    Raises:
        ModelError: the checksum of a file is wrong.
    """
    known = {name: entry for name, entry in published_checksums(folder, where).items() if (folder / name).is_file()}
    for name, digest in zip(known, _digests([folder / name for name in known]), strict=True):
        if digest != known[name]["sha256"]:
            raise ModelError(
                f"{where}/{name} has SHA-256 {digest[:12]}... instead of {known[name]['sha256'][:12]}... ({CHECKSUMS})",
                "try again in case it was just replaced, otherwise publish it again",
            )


def published_checksums(folder: Path, where: str) -> Mapping[str, Any]:
    """Read the entries of ``checksums.json`` by file name; empty if there is no such file."""
    if not (folder / CHECKSUMS).is_file():
        return {}
    files: Mapping[str, Any] = _read_json(lambda name: (folder / name).read_bytes(), CHECKSUMS, where).get("files", {})
    return files


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:  # hashing releases the GIL
        return list(pool.map(_digest, files))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(read: Callable[[str], bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(read(name))
    except ValueError as error:
        raise ModelError(
            f"{where}/{name} is not valid JSON ({error})", "download or publish the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{where}/{name} is not a JSON object", "download or publish the model again")
    return content

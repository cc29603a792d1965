"""What the folder of a model holds: which files are taken, which must be there, and their checksums.

Only safetensors, JSON and tokenizer files at the top of the folder are ever taken; pickled weights are not, since
loading them runs code that is in them. A folder that jsfree publishes carries ``checksums.json``:

    {"files": {"model.safetensors": {"bytes": 26700000000, "sha256": "..."}, ...}}

Its model card, ``README.md``, is for people and is written later: it has no checksum and nobody fetches it.
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

CHECKSUMS = "checksums.json"
CARD = "README.md"
ADAPTER = "adapter"
"""Folder in the model's with the adapter alone, where adapters were trained."""
BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack")
HASHED_AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """A kind of model: what its weights are called, and what else must be there (one name of each group)."""

    name: str
    weights: str
    parts: tuple[tuple[str, ...], ...]
    model_type: str | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the file names that are taken."""
        return (self.weights, *BESIDE_WEIGHTS)

    def takes(self, name: str) -> bool:
        """Whether a file of this name, relative to the folder, belongs to the model."""
        return "/" not in name and any(fnmatchcase(name, pattern) for pattern in self.patterns)


CAPTIONER = Kind(
    "captioner",
    "model*.safetensors",
    (
        ("config.json",),
        ("processor_config.json", "preprocessor_config.json"),
        ("tokenizer.json", "tokenizer.model"),
    ),
    model_type="llava",
)
CLIP = Kind("CLIP", "open_clip*.safetensors", (("open_clip_config.json",),))


def require(kind: Kind, where: str, names: Collection[str], read: Callable[[str], bytes] | None = None) -> None:
    """Check that the files of a model are all there.

    Args:
        where: the folder or hub id, for errors.
        names: names of the files that are there, relative to the folder.
        read: gives a file's content, for what only the content tells (shards of an index, the model's type).

    Raises:
        ModelError: a file is missing, the weights are pickled, or the model is of another type.
    """
    for group in kind.parts:
        if not set(group) & set(names):
            raise ModelError(f"{kind.name} {where!r} lacks {' or '.join(group)}", "it is no whole model of this kind")
    if read is not None:
        require_type(kind, where, read)
    _require_weights(kind, where, names, read)


def require_type(kind: Kind, where: str, read: Callable[[str], bytes]) -> None:
    """Check by its configuration that a model is of a kind.

    Raises:
        ModelError: it is of another type.
    """
    if kind.model_type is None:
        return
    found = _read_json(read, "config.json", where).get("model_type")
    if found != kind.model_type:
        raise ModelError(
            f"{kind.name} {where!r} is a model of type {found!r}",
            f"jsfree takes LLaVA-1.5 checkpoints (type {kind.model_type!r}, such as llava-hf/llava-1.5-13b-hf)",
        )


def _require_weights(kind: Kind, where: str, names: Collection[str], read: Callable[[str], bytes] | None) -> None:
    index = kind.weights.replace("*", "") + ".index.json"
    if index in names and read is not None:
        shards = set(_read_json(read, index, where).get("weight_map", {}).values())
        missing = sorted(shards - set(names))
        if missing:
            raise ModelError(f"{kind.name} {where!r} lacks {missing[0]}, one of the {len(shards)} files of {index}")
    if any(fnmatchcase(name, kind.weights) for name in names):
        return
    pickled = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLED))
    if pickled:
        raise ModelError(
            f"{kind.name} {where!r} has pickled weights only ({pickled[0]}), which run code when they are loaded;"
            f" use a revision with safetensors, or convert it to {kind.weights}"
        )
    raise ModelError(f"{kind.name} {where!r} holds no weights ({kind.weights})")


def require_folder(kind: Kind, where: str, folder: Path) -> None:
    """Check a model in a local folder: its files, and that none is shorter than its checksums say.

    Raises:
        ModelError: as ``require``, or a file was cut.
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    require(kind, where, names, lambda name: (folder / name).read_bytes())
    for name, known in published_checksums(folder, where).items():
        if name not in names:
            raise ModelError(
                f"{kind.name} {where!r} lacks {name}, which its {CHECKSUMS} names", "publish or copy it again"
            )
        size = (folder / name).stat().st_size
        if size != known["bytes"]:
            raise ModelError(
                f"{kind.name} {where!r}: {name} has {size} bytes, {CHECKSUMS} says {known['bytes']};"
                " it was copied in part: copy it again"
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
    """Write ``checksums.json`` for all files of a folder, but for its model card."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (CHECKSUMS, CARD))
    known = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, _digests(files), strict=True)
    }
    (folder / CHECKSUMS).write_text(json.dumps({"files": known}, indent=2) + "\n", encoding="utf-8")


def verify_checksums(folder: Path, where: str) -> None:
    """Compare a fetched folder with its ``checksums.json``; one without has nothing to compare.

    Raises:
        ModelError: a file is missing or its content is another.
    """
    known = {name: entry for name, entry in published_checksums(folder, where).items() if (folder / name).is_file()}
    for name, digest in zip(known, _digests([folder / name for name in known]), strict=True):
        if digest != known[name]["sha256"]:
            raise ModelError(
                f"{where}/{name} came with SHA-256 {digest[:12]}..., but its {CHECKSUMS} says"
                f" {known[name]['sha256'][:12]}...: it was damaged, or published anew in the meantime",
                "try again, then publish it again",
            )


def published_checksums(folder: Path, where: str) -> Mapping[str, Any]:
    """The entries of a folder's ``checksums.json``, by file name; empty without one."""
    if not (folder / CHECKSUMS).is_file():
        return {}
    files: Mapping[str, Any] = _read_json(lambda name: (folder / name).read_bytes(), CHECKSUMS, where).get("files", {})
    return files


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:  # hashing lets other threads run
        return list(pool.map(_digest, files))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(read: Callable[[str], bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(read(name))
    except ValueError as error:
        raise ModelError(f"{where}/{name} is no valid JSON ({error})", "fetch or publish the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{where}/{name} holds no JSON object", "fetch or publish the model again")
    return content

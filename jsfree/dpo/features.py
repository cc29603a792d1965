"""A disk cache of the frozen vision tower's outputs (``train.cache_vision_features``).

One file per image, ``features/<origin>/<image>.safetensors`` in the round's folder: the tensors of an ``ImageInputs``
with features in the model's dtype in place of pixels, and the text that stands for the image in a prompt. LLaVA-1.5
takes 1.2 MB an image (576 x 1,024 in bfloat16).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load, save

from jsfree.dpo.batching import prefetch
from jsfree.dpo.pairs import Pairs, iterate
from jsfree.dpo.reference_logps import collective_device
from jsfree.models.families.base import ImageInputs, Tensors, join_images, split_features
from jsfree.run.folder import Folder
from jsfree.schemas import SelectedPair

TEXT = "text"
"""Key of the text, as bytes in UTF-8."""
FORMAT = "2"
"""Part of a cache's origin, so that files of earlier versions are not read."""
SUFFIX = ".safetensors"
FILE = re.compile(rf"([0-9a-f]{{32}}){re.escape(SUFFIX)}")
DIGEST = "V16"
"""numpy dtype of an image's digest, which in hexadecimal is the name of its file."""


class VisionFeatures:
    """The cached features of a round's images."""

    def __init__(self, folder: Folder, origin: Mapping[str, str]) -> None:
        """Open the cache.

        Args:
            folder: folder of all caches.
            origin: as of ``reference_logps.origin``; all of it but the pairs identifies the cache.
        """
        parts = {**origin, "format": FORMAT}
        key = "\0".join(f"{name}={value}" for name, value in sorted(parts.items()) if name != "pairs")
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    def load(self, pair: SelectedPair) -> ImageInputs:
        """Read the features of a pair's image. Thread-safe."""
        tensors = load(self.folder.read(_file_name(pair)))
        return ImageInputs(tensors, bytes(tensors.pop(TEXT).tolist()).decode())

    def compute_missing(
        self,
        pairs: Pairs,
        load_images: Callable[[Sequence[int]], list[ImageInputs]],
        forward: Callable[[Tensors], Tensors],
        micro: int,
    ) -> None:
        """Compute the features that are not cached yet, split among all workers; every worker must call.

        Args:
            pairs: all pairs.
            load_images: reads the images at some positions in ``pairs``.
            forward: the vision tower.
            micro: images in one forward pass.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        missing = _broadcast(self._missing(pairs) if rank == 0 else None)
        share = -(-len(missing) // world)  # ZeRO-3 needs as many forward passes on every worker
        positions = [missing[(rank + world * number) % len(missing)] for number in range(share)]
        parts = [positions[start : start + micro] for start in range(0, share, micro)]

        def load_named(part: list[int]) -> tuple[list[str], list[ImageInputs]]:
            return [_file_name(pairs[position]) for position in part], load_images(part)

        for names, images in prefetch(load_named, parts):
            features = {name: tensor.cpu() for name, tensor in forward(join_images(images)).items()}
            for name, image in zip(names, split_features(features, images), strict=True):
                text = torch.tensor(list(image.text.encode()), dtype=torch.uint8)
                tensors = {key: tensor.contiguous() for key, tensor in image.tensors.items()}
                self.folder.write(name, save({**tensors, TEXT: text}))
        dist.barrier()
        if rank == 0:
            self.folder.remove_partial_files()

    def _missing(self, pairs: Pairs) -> NDArray[np.int64]:
        """Positions of one pair for each image without cached features, in the order of the files' names."""
        digests = bytearray()
        for pair in iterate(pairs, ["sample_id", "image.sha256"]):
            digests += _digest(pair)
        cached = b"".join(bytes.fromhex(match[1]) for match in map(FILE.fullmatch, self.folder.names()) if match)
        required, available = (np.frombuffer(bytes(joined), DIGEST) for joined in (digests, cached))
        # np.unique on the reversed array gives the last pair of each image.
        _, last = np.unique(required[::-1], return_index=True)
        positions = len(required) - 1 - last
        return positions[~np.isin(required[positions], available)]


def _broadcast(positions: NDArray[np.int64] | None) -> list[int]:
    """Send rank 0's positions to all workers, since they may not see the same files yet in an object store."""
    device = collective_device()
    count = torch.tensor(0 if positions is None else len(positions), device=device)
    dist.broadcast(count, src=0)
    exchanged = torch.zeros(int(count), dtype=torch.int64) if positions is None else torch.from_numpy(positions)
    exchanged = exchanged.to(device)
    dist.broadcast(exchanged, src=0)
    return exchanged.tolist()


def _file_name(pair: SelectedPair) -> str:
    return _digest(pair).hex() + SUFFIX


def _digest(pair: SelectedPair) -> bytes:
    image = pair["image"]["sha256"] or pair["sample_id"]
    return hashlib.sha256(image.encode()).digest()[:16]

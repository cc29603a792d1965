"""What the frozen vision tower makes of the images, computed once and kept on disk (``train.cache_vision_features``).

A file an image, ``features/<origin>/<image>.safetensors``, beside the round's tables: an image's features in the
model's dtype, (visual tokens, width). For LLaVA-1.5 they are 1.2 MB an image (576 x 1,024 in bfloat16).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load, save

from jsfree.dpo.batching import PairBatch, prefetched
from jsfree.dpo.pairs import Pairs, each
from jsfree.dpo.reference_logps import Load, collective_device
from jsfree.run.folder import Folder
from jsfree.schemas import SelectedPair

NAME = "features"
SUFFIX = ".safetensors"
FILE = re.compile(rf"([0-9a-f]{{32}}){re.escape(SUFFIX)}")
DIGEST = "V16"
"""An image's digest, the hexadecimal form of which is the name of its file, in an array."""


class VisionFeatures:
    """The features of a round's images. ``origin`` is what they depend on: model, dtype and preprocessing."""

    def __init__(self, folder: Folder, origin: Mapping[str, str]) -> None:
        depends = "\0".join(f"{name}={value}" for name, value in sorted(origin.items()) if name != "pairs")
        self.folder = folder / hashlib.sha256(depends.encode()).hexdigest()[:16]

    def of(self, pair: SelectedPair) -> torch.Tensor:
        """The features of a pair's image, from the disk; of any thread."""
        return load(self.folder.read(_name(pair)))[NAME]

    def prepare(
        self,
        pairs: Pairs,
        load_batch: Load,
        forward: Callable[[torch.Tensor | None], torch.Tensor],
        micro: int,
    ) -> None:
        """Have all workers compute together what is not there yet.

        Args:
            load_batch: makes a batch with pixels of the pairs at some positions.
            forward: the vision tower: pixels to features.
            micro: images in one forward pass.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        missing = self._shared(self._missing(pairs) if rank == 0 else None)
        share = -(-len(missing) // world)  # all make as many forward passes: ZeRO-3 needs it
        mine = [missing[(rank + world * turn) % len(missing)] for turn in range(share)]
        parts = [mine[at : at + micro] for at in range(0, share, micro)]

        def named(part: list[int]) -> tuple[list[str], PairBatch]:
            return [_name(pairs[position]) for position in part], load_batch(part)

        for names, batch in prefetched(named, parts):
            for name, features in zip(names, forward(batch.pixels).cpu(), strict=True):
                self.folder.write(name, save({NAME: features.contiguous()}))
        dist.barrier()
        if rank == 0:
            self.folder.remove_partial_files()

    def _missing(self, pairs: Pairs) -> NDArray[np.int64]:
        """Positions of pairs whose images' features are to be computed, in the order of their files' names."""
        names = bytearray()
        for pair in each(pairs, ["sample_id", "image.sha256"]):
            names += _digest(pair)
        present = b"".join(bytes.fromhex(found[1]) for found in map(FILE.fullmatch, self.folder.names()) if found)
        needed, there = (np.frombuffer(bytes(digests), DIGEST) for digests in (names, present))
        # Of pairs with the same image the last one stands for all.
        _, last = np.unique(needed[::-1], return_index=True)
        positions = len(needed) - 1 - last
        return positions[~np.isin(needed[positions], there)]

    def _shared(self, missing: NDArray[np.int64] | None) -> list[int]:
        """What rank 0 found, for all workers: what one sees in a store another may not see yet."""
        device = collective_device()
        count = torch.tensor(0 if missing is None else len(missing), device=device)
        dist.broadcast(count, src=0)
        positions = torch.zeros(int(count), dtype=torch.int64) if missing is None else torch.from_numpy(missing)
        positions = positions.to(device)
        dist.broadcast(positions, src=0)
        return positions.tolist()


def _name(pair: SelectedPair) -> str:
    return _digest(pair).hex() + SUFFIX


def _digest(pair: SelectedPair) -> bytes:
    image = pair["image"]["sha256"] or pair["sample_id"]
    return hashlib.sha256(image.encode()).digest()[:16]

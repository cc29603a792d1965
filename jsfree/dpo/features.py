"""What the frozen vision tower makes of the images, computed once and kept on disk (``train.cache_vision_features``).

A file an image, ``features/<origin>/<image>.safetensors``, beside the round's tables: an image's features in the
model's dtype, (visual tokens, width). For LLaVA-1.5 they are 1.2 MB an image (576 x 1,024 in bfloat16).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from jsfree.dpo.batching import PairBatch, prefetched
from jsfree.dpo.reference_logps import collective_device
from jsfree.schemas import SelectedPair
from jsfree.storage import Folder

NAME = "features"


class VisionFeatures:
    """The features of a round's images. ``origin`` is what they depend on: model, dtype and preprocessing."""

    def __init__(self, folder: Folder, origin: Mapping[str, str]) -> None:
        depends = "\0".join(f"{name}={value}" for name, value in sorted(origin.items()) if name != "pairs")
        self.folder = folder / hashlib.sha256(depends.encode()).hexdigest()[:16]

    def of(self, pair: SelectedPair) -> torch.Tensor:
        """The features of a pair's image, from the disk; of any thread."""
        return load(self.folder.read(self._name(pair)))[NAME]

    def prepare(
        self,
        pairs: Sequence[SelectedPair],
        load_batch: Callable[[Sequence[SelectedPair]], PairBatch],
        forward: Callable[[torch.Tensor | None], torch.Tensor],
        micro: int,
    ) -> None:
        """Have all workers compute together what is not there yet.

        Args:
            load_batch: makes a batch with pixels.
            forward: the vision tower: pixels to features.
            micro: images in one forward pass.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        there = set(self.folder.names())
        missing = {name: pair for pair in pairs if (name := self._name(pair)) not in there}
        todo: list[list[SelectedPair] | None] = [list(missing.values()) if rank == 0 else None]
        dist.broadcast_object_list(todo, src=0, device=collective_device())  # what one sees another may not yet
        every = todo[0] or []
        share = -(-len(every) // world)
        mine = [every[(rank + world * turn) % len(every)] for turn in range(share)]
        for batch, chunk in prefetched(
            lambda part: (load_batch(part), part), [mine[at : at + micro] for at in range(0, share, micro)]
        ):
            for pair, features in zip(chunk, forward(batch.pixels).cpu(), strict=True):
                self.folder.write(self._name(pair), save({NAME: features.contiguous()}))
        dist.barrier()

    def _name(self, pair: SelectedPair) -> str:
        image = pair["image"]["sha256"] or pair["sample_id"]
        return hashlib.sha256(image.encode()).hexdigest()[:32] + ".safetensors"

"""What the frozen vision tower makes of the images, computed once and kept on disk (``train.cache_vision_features``).

A file an image, ``features/<origin>/<image>.safetensors``, beside the round's tables: an image's features in the
model's dtype, (visual tokens, width). For LLaVA-1.5 they are 1.2 MB an image (576 x 1,024 in bfloat16).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        images = {self._name(pair): pair for pair in pairs}
        missing: list[Any] = [sorted(images.keys() - set(self.folder.names())) if rank == 0 else None]
        dist.broadcast_object_list(missing, src=0, device=collective_device())  # what one sees another may not yet
        names: list[str] = missing[0]
        share = -(-len(names) // world)  # all make as many forward passes: ZeRO-3 needs it
        mine = [names[(rank + world * turn) % len(names)] for turn in range(share)]
        parts = [mine[at : at + micro] for at in range(0, share, micro)]
        batches = prefetched(lambda part: load_batch([images[name] for name in part]), parts)
        for part, batch in zip(parts, batches, strict=True):
            for name, features in zip(part, forward(batch.pixels).cpu(), strict=True):
                self.folder.write(name, save({NAME: features.contiguous()}))
        dist.barrier()
        if rank == 0:
            self.folder.sweep()

    def _name(self, pair: SelectedPair) -> str:
        image = pair["image"]["sha256"] or pair["sample_id"]
        return hashlib.sha256(image.encode()).hexdigest()[:32] + ".safetensors"

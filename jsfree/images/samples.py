"""The samples of a round or of the evaluation, made one by one when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from jsfree.images.drawing import Failures
from jsfree.schemas import ImageRef, Sample, sample_id


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """Samples in the order of the seed.

    ``unusable`` are the rows of the source that name no usable image, of ``listed`` rows that name one or should.
    ``key`` is what identifies the image of a number without making it.
    """

    numbers: Sequence[int]
    image: Callable[[int], ImageRef]
    key: Callable[[int], str]
    prompt: str
    unusable: Failures = field(default_factory=Failures)
    listed: int = 0

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        image = self.image(self.numbers[index])
        return {"sample_id": sample_id(image["id"], self.prompt), "image": image, "prompt": self.prompt}

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> str:
        """A hash of the images, their order, the prompt, and the rows that name none."""
        digest = hashlib.sha256(self.prompt.encode())
        for number in self.numbers:
            digest.update(f"\0{self.key(number)}".encode())
        for table in self.unusable.tables(""):
            for name in table["sample_id"].to_pylist():
                digest.update(f"\1{name}".encode())
        return digest.hexdigest()

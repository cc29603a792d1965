"""A lazy sequence of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from jsfree.images.drawing import Failures
from jsfree.schemas import ImageRef, Sample, sample_id


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """The samples of a round or of the evaluation, created on access.

    Attributes:
        numbers: numbers of the images.
        image: creates the reference to an image from its number.
        key: identifies an image by its number, without creating the reference.
        prompt: prompt of all samples.
        unusable: rows of the source without a usable image.
        listed: number of rows of the source that refer to an image, or should.
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
        """Hash of the prompt, the images in order, and the unusable rows."""
        digest = hashlib.sha256(self.prompt.encode())
        for number in self.numbers:
            digest.update(f"\0{self.key(number)}".encode())
        for table in self.unusable.tables(""):
            for name in table["sample_id"].to_pylist():
                digest.update(f"\1{name}".encode())
        return digest.hexdigest()

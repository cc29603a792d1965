"""Stage classes that caption images: pairs for training, and captions for evaluation.

The classes do not depend on Ray: ``__init__`` loads the model, and a call processes a batch of samples. The same class
is used in a loop, in a Ray Data actor and in tests.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from jsfree import schemas
from jsfree.config import RunConfig, Source
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import NoTokenError, RowError
from jsfree.images.decoding import load_image
from jsfree.images.overlap import read_hashes, require_not_evaluated
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import Captioner, load_captioner
from jsfree.schemas import ImageRef, Role, Sample, StageOutput
from jsfree.stages.losers import continue_winner, loser_request, ratios_by_role
from jsfree.stages.token_offsets import TokenOffsets

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)
READ_AHEAD = 64
"""Number of images that are read in advance of decoding."""


class ImageObserver(Protocol):
    """Receives every image that the captioner reads."""

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Prepare an image; called in any thread."""

    def receive(self, sample_id: str, pixels: torch.Tensor) -> None:
        """Receive the prepared image of a sample; called in the order of the samples, in the caller's thread."""


@dataclass(frozen=True)
class _Read:
    """An image prepared for the captioner and for the observer, and the hash of its file."""

    inputs: ImageInputs
    sha256: str
    observed: torch.Tensor | None


class ImageReader:
    """Reads and preprocesses images in threads, in advance of decoding.

    An image whose SHA-256 is in ``excluded`` becomes an error row of kind ``evaluation_image``.
    """

    def __init__(self, captioner: Captioner, threads: float, excluded: Collection[str] = ()) -> None:
        self._captioner = captioner
        self._excluded = excluded
        self._readers = ThreadPoolExecutor(max(1, int(threads)), "read-image")

    def read(
        self,
        samples: Sequence[Sample],
        limits: Source,
        stage: str,
        output: StageOutput,
        observer: ImageObserver | None = None,
    ) -> Iterator[tuple[Sample, ImageInputs]]:
        """Yield samples with their preprocessed images, in order.

        Samples that cannot be read become error rows of ``output``. ``observer`` receives the same images.
        """
        waiting: deque[tuple[Sample, Future[_Read]]] = deque()
        for sample in _valid_samples(samples, stage, output):
            waiting.append((sample, self._readers.submit(self._read_image, sample["image"], limits, observer)))
            if len(waiting) >= READ_AHEAD:
                yield from self._finish(*waiting.popleft(), stage, output, observer)
        for sample, pending in waiting:
            yield from self._finish(sample, pending, stage, output, observer)

    def _read_image(self, image: ImageRef, limits: Source, observer: ImageObserver | None) -> _Read:
        loaded, sha256 = load_image(image, limits)
        require_not_evaluated(image, sha256, self._excluded)
        return _Read(self._captioner.inputs(loaded), sha256, None if observer is None else observer.pixels(loaded))

    @staticmethod
    def _finish(
        sample: Sample, pending: Future[_Read], stage: str, output: StageOutput, observer: ImageObserver | None
    ) -> Iterator[tuple[Sample, ImageInputs]]:
        try:
            read = pending.result()
        except RowError as error:
            _fail(sample["sample_id"], stage, error, output)
            return
        if observer is not None and read.observed is not None:
            observer.receive(sample["sample_id"], read.observed)
        image = cast(ImageRef, {**sample["image"], "sha256": read.sha256})
        yield cast(Sample, {**sample, "image": image}), read.inputs


@dataclass
class _Generating:
    """A sample whose captions are being decoded."""

    sample: Sample
    ratios: dict[Role, float]
    roles: tuple[Role, ...]
    """The captions that are decoded first."""
    waiting: Request | None
    """The request that waits for the winner, whose tokens it begins with."""
    captions: dict[Role, Caption | NoTokenError] = field(default_factory=dict)


class PairGenerator:
    """Stage 1: two captions per image by dual-path decoding (paper, section 3.2 and Algorithm 1, lines 3-8).

    The second one may be made in another way (``generate.loser``). With ``generate.samples``, there are further
    captions at h = 0, and log-probabilities of all captions (``Candidate``).
    """

    def __init__(
        self,
        config: RunConfig,
        model_ref: str,
        round_number: int,
        device: str = "cpu",
        evaluation_hashes: str | None = None,
    ) -> None:
        """Load the captioner ``model_ref``.

        Args:
            evaluation_hashes: folder or URI of a table of ``schemas.EVALUATION_HASHES``. Its images are excluded.
        """
        self.config = config
        self.round_number = round_number
        settings = config.generate
        self.captioner = captioner_of(config, model_ref, device)
        excluded = read_hashes(evaluation_hashes) if evaluation_hashes else frozenset[str]()
        self._reader = ImageReader(self.captioner, settings.resources.cpus, excluded)
        workload = Workload.for_pairs(settings)
        self.engine = DualPathEngine(
            self.captioner, workload, kv_cache_gib=settings.kv_cache_gib, compiling=settings.compile
        )
        self._loop = DecodingLoop(self.engine)
        self._offsets = TokenOffsets(self.captioner)
        self._numbers = count()

    def __call__(self, samples: Sequence[Sample], observer: ImageObserver | None = None) -> StageOutput:
        """Generate a row of ``schemas.PAIRS`` for each sample whose image can be read and is not in the evaluation set.

        ``observer`` receives the same images. Thread-safe: batches of several threads are decoded together.
        """
        output = StageOutput()
        generating: list[_Generating] = []
        is_continued = self.config.generate.loser == "continuation"

        def requests() -> Iterator[Request]:
            for sample, image in self._reader.read(samples, self.config.source, "pairs", output, observer):
                ratios = self._ratios(sample)
                own = {role: self._request(sample, image, role, ratio) for role, ratio in ratios.items()}
                waiting = own.pop(schemas.HIGH) if is_continued else None
                generating.append(_Generating(sample, ratios, tuple(own), waiting))
                yield from own.values()

        captions = iter(self._loop.decode(requests()))
        for each in generating:
            each.captions = {role: next(captions) for role in each.roles}
        self._continue_winners(generating)
        for each in generating:
            failed = next((caption for caption in each.captions.values() if isinstance(caption, NoTokenError)), None)
            if failed is not None:
                _fail_decoding(each.sample["sample_id"], "pairs", failed, output)
                continue
            decoded = {role: cast(Caption, each.captions[role]) for role in each.ratios}
            output.rows.append(self._row(each.sample, each.ratios, decoded))
            output.tokens += sum(len(caption.token_ids) for caption in decoded.values())
        return output

    def _continue_winners(self, generating: Sequence[_Generating]) -> None:
        """Decode the losers that begin as the winners of their samples, where the winner could be decoded."""
        continued: list[_Generating] = []

        def requests() -> Iterator[Request]:
            for each in generating:
                winner = each.captions[schemas.LOW]
                if each.waiting is not None and isinstance(winner, Caption):
                    continued.append(each)
                    yield continue_winner(each.waiting, winner)

        for loser, each in zip(self._loop.decode(requests()), continued, strict=True):
            each.captions[schemas.HIGH] = loser

    def _row(self, sample: Sample, ratios: dict[Role, float], captions: dict[Role, Caption]) -> dict[str, Any]:
        decoded = {role: _decoded(caption, ratios[role]) for role, caption in captions.items()}
        row = {**sample, "low": decoded[schemas.LOW], "high": decoded[schemas.HIGH], "seed": self.config.seed}
        if self.config.generate.samples:
            row["candidates"] = [
                {
                    **decoded[role],
                    "role": role,
                    "logps": list(caption.logps or ()),
                    "unconditional_logps": list(caption.unconditional_logps or ()),
                    "ends": self._offsets.ends(caption.token_ids, caption.text),
                }
                for role, caption in captions.items()
            ]
        return row

    def _ratios(self, sample: Sample) -> dict[Role, float]:
        """Hallucination ratio of each caption of a sample, by role."""
        return ratios_by_role(self.config.generate, self.config.seed, self.round_number, sample["sample_id"])

    def _request(self, sample: Sample, image: ImageInputs, role: Role, ratio: float) -> Request:
        key = noise_key(self.config.seed, self.round_number, sample["sample_id"], role)
        settings = self.config.generate
        # Numbers instead of sample ids, because concurrent batches may contain the same sample.
        request = Request(
            f"{next(self._numbers)}",
            image,
            sample["prompt"],
            ratio,
            key,
            settings.decoding,
            with_logps=settings.samples > 0,
        )
        return loser_request(request, settings, self.captioner) if role == schemas.HIGH else request


class CaptionWriter:
    """Captions of one model for evaluation: conditioned on the image (h = 0), or with a contrastive baseline."""

    def __init__(self, config: RunConfig, model_ref: str, model: str, mode: str, device: str = "cpu") -> None:
        self.config = config
        self.model = model
        self.mode = mode
        self.decoding = config.evaluate.modes[mode]
        contrast, settings = self.decoding.contrast, config.generate
        self.captioner = captioner_of(config, model_ref, device)
        self._reader = ImageReader(self.captioner, settings.resources.cpus)
        workload = Workload.for_captions(settings.slots, contrast, self.decoding.views.count)
        self.engine = DualPathEngine(
            self.captioner, workload, kv_cache_gib=settings.kv_cache_gib, compiling=settings.compile
        )
        self._loop = DecodingLoop(self.engine)
        self._numbers = count()

    def __call__(self, samples: Sequence[Sample], observer: ImageObserver | None = None) -> StageOutput:
        """Generate a row of ``schemas.CAPTIONS`` for each sample whose image can be read.

        ``observer`` receives the same images. The sampling noise does not depend on the model, so that captions before
        and after training are comparable.
        """
        output = StageOutput()
        read: list[Sample] = []

        def requests() -> Iterator[Request]:
            for sample, image in self._reader.read(samples, self.config.evaluate.source, "captions", output, observer):
                read.append(sample)
                key = noise_key(self.config.seed, 0, sample["sample_id"], self.mode)
                ratio = 1.0 if self.decoding.contrast else 0.0
                yield Request(f"{next(self._numbers)}", image, sample["prompt"], ratio, key, self.decoding)

        captions = self._loop.decode(requests())
        for sample, caption in zip(read, captions, strict=True):
            if isinstance(caption, NoTokenError):
                _fail_decoding(sample["sample_id"], "captions", caption, output)
                continue
            output.tokens += len(caption.token_ids)
            written = {"text": caption.text, "token_ids": list(caption.token_ids), "finish": caption.finish}
            output.rows.append({**sample, "model": self.model, "mode": self.mode, **written})
        return output


def _valid_samples(samples: Sequence[Sample], stage: str, output: StageOutput) -> Iterator[Sample]:
    """Yield samples without duplicates and empty prompts, which become error rows."""
    seen: set[str] = set()
    for sample in samples:
        name = sample["sample_id"]
        if name in seen:
            error = RowError("duplicate_id", f"sample {name} occurs more than once", "only its first row is used")
        elif not sample["prompt"].strip():
            error = RowError("empty_prompt", f"sample {name} has an empty prompt", "set 'prompt', or remove the row")
        else:
            seen.add(name)
            yield sample
            continue
        _fail(name, stage, error, output)


def captioner_of(config: RunConfig, model_ref: str, device: str) -> Captioner:
    """Load a captioner with the settings of a run."""
    settings = config.captioner
    return load_captioner(model_ref, device, settings.dtype, settings.preprocessing, settings.device_map, config.models)


def _fail(sample_id: str, stage: str, error: RowError, output: StageOutput) -> None:
    log.log(
        logging.INFO if error.kind == schemas.EVALUATION_IMAGE else logging.WARNING,
        "%s: %s: %s",
        stage,
        sample_id,
        error,
    )
    output.errors.append(schemas.error_row(sample_id, stage, error))


def _fail_decoding(sample_id: str, stage: str, error: object, output: StageOutput) -> None:
    _fail(sample_id, stage, RowError("no_token", f"sample {sample_id} cannot be captioned: {error}"), output)


def _decoded(caption: Caption, ratio: float) -> schemas.Decoded:
    return {"ratio": ratio, "text": caption.text, "token_ids": list(caption.token_ids), "finish": caption.finish}

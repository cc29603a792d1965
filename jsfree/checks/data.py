"""Checks of the images of a run, on a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import Imported, RunConfig, Source
from jsfree.errors import RowError
from jsfree.evaluation.statistics import wilson
from jsfree.exchange import UnusableRecord, preferences
from jsfree.images.decoding import load_image
from jsfree.images.sources import SourceSummary
from jsfree.schemas import Sample, sample_id

AREA = "data"
DECODED_IMAGES = 64
"""Images of a source that are decoded."""
READERS = 8
MAX_RECORDS, MAX_BYTES = 20_000, 500_000_000
"""Records of imported pairs that are read, and bytes of images in them."""
Z_ONE_SIDED_95 = 1.645


def check_source(config: RunConfig, source: Source, name: str, look: SourceSummary) -> Iterator[Finding]:
    """Report the number of images of a source, repeated ids, unusable rows, and undecodable images in the sample."""
    location = source.path or f"MiniWorld, {source.split}"
    count = "all" if source.count is None else f"{source.count:,}"
    rounds = f" in each of {config.rounds} rounds" if source is config.source and config.rounds > 1 else ""
    yield ok(AREA, name, f"{location}: {look.images:,} images; {count} are used{rounds}")
    if look.repeated:
        yield note(
            AREA,
            f"{name}: ids",
            f"{look.repeated:,} entries repeat the image of another entry; each image is used once",
        )
    if look.first_unusable is not None:
        yield _unusable_rows(config, f"{name}: rows", look)
    yield from _decoded_sample(config, name, look.samples, source)


def _unusable_rows(config: RunConfig, name: str, look: SourceSummary) -> Finding:
    failed, allowed = look.unusable.total(), config.max_failed_fraction
    found = (
        f"{failed:,} of {look.rows:,} name no usable image ({_kinds(look.unusable)}), such as: {look.first_unusable}"
    )
    if failed <= allowed * look.rows:
        return note(
            AREA, name, found, f"they become error rows; the stage fails if they exceed {allowed:.0%} of its rows"
        )
    remedy = f"correct or remove them, or raise max_failed_fraction ({allowed:g}), above which the stage fails"
    return fails(AREA, name, found, remedy)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


@dataclass(frozen=True)
class ImportedSample:
    """The first records of imported pairs: usable pairs, whether more follow, samples to decode, unusable records."""

    pairs: int
    more: bool
    samples: list[Sample]
    unusable: list[RowError]


def sample_imported(settings: Imported) -> ImportedSample:
    """Read up to ``MAX_RECORDS`` records of imported pairs.

    Raises:
        SourceError: the path is missing or unreadable, or not of the format.
    """
    count, size, records = 0, 0, preferences(settings)
    samples: list[Sample] = []
    unusable: list[RowError] = []
    for record in islice(records, MAX_RECORDS):
        if isinstance(record, UnusableRecord):
            unusable.append(record.error)
            continue
        count += 1
        size += len(record.image["bytes"] or b"")
        if size > MAX_BYTES:
            break
        if len(samples) < DECODED_IMAGES:
            name = sample_id(record.id, record.prompt)
            samples.append(Sample(sample_id=name, image=record.image, prompt=record.prompt))
    return ImportedSample(count, next(records, None) is not None, samples, unusable)


def check_imported(config: RunConfig, settings: Imported, sample: ImportedSample) -> Iterator[Finding]:
    """Report the number of imported pairs, unusable records, and undecodable images in the sample."""
    more = "more than " if sample.more else ""
    yield ok(AREA, "imported", f"{settings.path} ({settings.format}): {more}{sample.pairs:,} pairs")
    if sample.unusable:
        total = sample.pairs + len(sample.unusable)
        yield _unusable_share(config, "imported: records", sample.unusable, total)
    yield from _decoded_sample(config, "imported", sample.samples, config.source)


def _decoded_sample(config: RunConfig, name: str, samples: Sequence[Sample], limits: Source) -> Iterator[Finding]:
    with ThreadPoolExecutor(READERS) as readers:
        errors = [error for error in readers.map(lambda sample: _error(sample, limits), samples) if error is not None]
    if not samples:
        return
    check = f"{name}: {len(samples)} images decoded"
    if errors:
        yield _unusable_share(config, check, errors, len(samples))
    else:
        yield ok(AREA, check, "all of them can be used")


def _error(sample: Sample, limits: Source) -> RowError | None:
    try:
        load_image(sample["image"], limits)
    except RowError as error:
        return error
    return None


def _unusable_share(config: RunConfig, name: str, errors: Sequence[RowError], total: int) -> Finding:
    """Fail if the share of unusable rows exceeds ``max_failed_fraction`` with 95 % confidence, else note it."""
    kinds = _kinds(Counter(error.kind for error in errors))
    found = f"{len(errors)} of {total} cannot be used ({kinds}), such as: {errors[0].problem}"
    allowed = config.max_failed_fraction
    if wilson(len(errors), total, Z_ONE_SIDED_95).low <= allowed:
        return note(
            AREA, name, found, f"they become error rows; a stage fails if they exceed {allowed:.0%} of its rows"
        )
    remedy = (
        f"repair or remove them, correct the path, or raise max_failed_fraction ({allowed:g}), above which stages fail"
    )
    return fails(AREA, name, found, remedy)

"""Whether a source's images are there and can be used, found out from a sample of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import Imported, RunConfig, Source
from jsfree.errors import RowError
from jsfree.exchange import Unusable, preferences
from jsfree.images.decoding import load_image
from jsfree.images.sources import Look
from jsfree.schemas import Sample, sample_id

AREA = "data"
LOOKED_AT = 64
"""Images that are really decoded."""
READERS = 8
MOST_RECORDS, MOST_BYTES = 20_000, 500_000_000
"""Records of imported pairs that are read, and bytes of images in them."""
CERTAINTY = 1.645
"""Standard errors below the share of broken images in the sample at which the lower bound lies (one-sided 95 %)."""


def check_look(config: RunConfig, source: Source, name: str, look: Look) -> Iterator[Finding]:
    """What a look at a source tells: its images, ids, and how many of a sample cannot be used."""
    where = source.path or f"MiniWorld, {source.split}"
    asked = "all" if source.count is None else f"{source.count:,}"
    rounds = f" in each of {config.rounds} rounds" if source is config.source and config.rounds > 1 else ""
    yield ok(AREA, name, f"{where}: {look.images:,} images; {asked} are taken{rounds}")
    if look.repeated:
        yield note(
            AREA,
            f"{name}: ids",
            f"{look.repeated:,} entries name an image that another one names too; each image is taken once",
        )
    if look.first_unusable is not None:
        yield _unusable(config, f"{name}: rows", look)
    yield from _sample(config, name, look.samples, source)


def _unusable(config: RunConfig, check: str, look: Look) -> Finding:
    """What it means that rows of a source name no usable image; all rows were looked at."""
    failed, allowed = look.unusable.total(), config.max_failed_fraction
    said = f"{failed:,} of {look.rows:,} name no usable image ({_kinds(look.unusable)}), such as: {look.first_unusable}"
    if failed <= allowed * look.rows:
        return note(AREA, check, said, f"they become error rows; more than {allowed:.0%} of the rows fail the stage")
    remedy = f"correct or remove them, or raise max_failed_fraction ({allowed:g}): the stage fails past it"
    return fails(AREA, check, said, remedy)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def check_imported(config: RunConfig, settings: Imported, look: ImportedLook) -> Iterator[Finding]:
    """What a look at somebody else's pairs tells: how many there are, which records are none, and their images."""
    more = "more than " if look.more else ""
    yield ok(AREA, "imported", f"{settings.path} ({settings.format}): {more}{look.pairs:,} pairs")
    if look.unusable:
        looked_at = look.pairs + len(look.unusable)
        yield _share(config, "imported: records", look.unusable, looked_at)
    yield from _sample(config, "imported", look.samples, config.source)


@dataclass(frozen=True)
class ImportedLook:
    """A look at somebody else's pairs: how many there are, whether there are more, and what was wrong with records."""

    pairs: int
    more: bool
    samples: list[Sample]
    unusable: list[RowError]


def look_at_imported(settings: Imported) -> ImportedLook:
    """Read records, at most ``MOST_RECORDS``.

    Raises:
        SourceError: the path is missing or unreadable, or not of the format.
    """
    count, read, found = 0, 0, preferences(settings)
    samples: list[Sample] = []
    unusable: list[RowError] = []
    for each in islice(found, MOST_RECORDS):
        if isinstance(each, Unusable):
            unusable.append(each.error)
            continue
        count += 1
        read += len(each.image["bytes"] or b"")
        if read > MOST_BYTES:
            break
        if len(samples) < LOOKED_AT:
            name = sample_id(each.id, each.prompt)
            samples.append(Sample(sample_id=name, image=each.image, prompt=each.prompt))
    return ImportedLook(count, next(found, None) is not None, samples, unusable)


def _sample(config: RunConfig, name: str, samples: Sequence[Sample], limits: Source) -> Iterator[Finding]:
    with ThreadPoolExecutor(READERS) as readers:
        errors = [error for error in readers.map(lambda sample: _error(sample, limits), samples) if error is not None]
    if not samples:
        return
    check = f"{name}: {len(samples)} images decoded"
    if not errors:
        yield ok(AREA, check, "all of them can be used")
        return
    yield _share(config, check, errors, len(samples))


def _share(config: RunConfig, check: str, errors: Sequence[RowError], looked_at: int) -> Finding:
    """What it means that some of those looked at cannot be used."""
    kinds = _kinds(Counter(error.kind for error in errors))
    told = f"{len(errors)} of {looked_at} cannot be used ({kinds}), such as: {str(errors[0]).partition('; ')[0]}"
    allowed = config.max_failed_fraction
    if lower_bound(len(errors), looked_at) <= allowed:
        return note(AREA, check, told, f"they become error rows; more than {allowed:.0%} of a stage's rows fail it")
    return fails(
        AREA,
        check,
        told,
        f"mend or remove them, correct the path, or raise max_failed_fraction ({allowed:g}): stages fail past it",
    )


def _error(sample: Sample, limits: Source) -> RowError | None:
    try:
        load_image(sample["image"], limits)
    except RowError as error:
        return error
    return None


def lower_bound(broken: int, looked_at: int) -> float:
    """The share of broken images that there are at least, one-sided 95 % (Wilson's interval)."""
    share, z = broken / looked_at, CERTAINTY
    middle = share + z * z / (2 * looked_at)
    spread = z * math.sqrt(share * (1 - share) / looked_at + z * z / (4 * looked_at**2))
    return (middle - spread) / (1 + z * z / looked_at)

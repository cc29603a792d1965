"""Stage 1 for imported pairs: samples and pairs from the records of another project; on the driver."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import count, islice

import pyarrow as pa

from jsfree import schemas
from jsfree.config import Imported
from jsfree.errors import StageError
from jsfree.exchange import UnusableRecord, preferences
from jsfree.exchange.pairs import ImportedPairs, samples
from jsfree.exchange.preferences import Preference
from jsfree.exchange.records import content_hash
from jsfree.images.overlap import read_hashes
from jsfree.run.run import Manifest
from jsfree.schemas import StageOutput
from ray_jobs.rounds import Round
from ray_jobs.shards.tables import total_manifest
from ray_jobs.stages.listings import fix_listing, fixed_listing

Work = Callable[[Sequence[Preference | UnusableRecord]], StageOutput]


def list_records(current: Round, settings: Imported) -> Manifest:
    """Write the round's samples; a record that cannot be used becomes an error row.

    If the record files have changed when an import is resumed, samples and pairs are made again. Once the pairs are
    finished, the files are no longer read.

    Raises:
        SourceError: the records are missing or unreadable.
        StageError: more of them cannot be used than ``max_failed_fraction`` allows.
    """
    fingerprint = current.fingerprint(current.config.fingerprint("seed", "imported", "shard_rows"))
    current.begin("samples", fingerprint)
    if current.run.manifest(current.number, "pairs") is None:
        fix_listing(current, "samples", content_hash(settings))
    return current.complete(
        "samples", fingerprint, lambda: _shards(current, settings, "samples", schemas.SAMPLES, samples)
    )


def import_pairs(current: Round, settings: Imported, listed: Manifest, evaluation_hashes: str) -> Manifest:
    """Write the round's pairs; unusable ones become error rows, and those of evaluation images are excluded.

    Args:
        evaluation_hashes: folder or URI of the hashes of the evaluation set.

    Raises:
        StageError: too many pairs cannot be used, or the records changed while they were read.
    """

    def work() -> Manifest:
        records, excluded = fixed_listing(current, "samples"), read_hashes(evaluation_hashes)
        fix_listing(current, "pairs", hashlib.sha256("\n".join((records, *sorted(excluded))).encode()).hexdigest())
        reader = ImportedPairs(current.config, settings, current.start.ref, excluded)
        manifest = _shards(current, settings, "pairs", schemas.PAIRS, reader)
        if content_hash(settings) != records:
            raise StageError(f"{settings.path} was changed while it was imported", "run the import again")
        return manifest

    return current.complete("pairs", current.fingerprint(listed.fingerprint, current.start.fingerprint), work)


def _shards(current: Round, settings: Imported, name: str, schema: pa.Schema, work: Work) -> Manifest:
    """Publish the missing shards of a table, each made from ``shard_rows`` records."""
    table = current.table(name, schema)
    remaining = preferences(settings)
    for number in count():
        records = list(islice(remaining, current.config.shard_rows))
        if not records:
            break
        if table.receipt(number) is None:
            started = time.perf_counter()
            output = work(records)
            table.publish(number, output, len(output.rows) + len(output.errors), time.perf_counter() - started)
    table.remove_partial_files()
    return total_manifest(name, table, current.config.max_failed_fraction)

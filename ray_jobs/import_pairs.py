"""Stage 1 for pairs of somebody else's: samples and pairs from their records. Runs on the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count, islice

import pyarrow as pa

from jsfree import schemas
from jsfree.config import Imported
from jsfree.exchange import Unusable, preferences
from jsfree.exchange.pairs import ImportedPairs, samples
from jsfree.exchange.preferences import Preference
from jsfree.schemas import StageOutput
from jsfree.storage import Folder, Manifest
from ray_jobs.rounds import Round
from ray_jobs.shards import Table, total

Work = Callable[[Sequence[Preference | Unusable]], StageOutput]


def import_pairs(current: Round, settings: Imported) -> Manifest:
    """The round's samples and pairs; a record that cannot be used is an error row of one of them."""
    config = current.config
    fingerprint = current.fingerprint(config.fingerprint("seed", "imported", "shard_rows"))

    def listing() -> Manifest:
        return _shards(current, settings, "samples", schemas.SAMPLES, samples)

    def reading() -> Manifest:
        return _shards(current, settings, "pairs", schemas.PAIRS, ImportedPairs(config, settings, current.start.ref))

    listed = current.once("samples", fingerprint, listing)
    return current.once("pairs", current.fingerprint(listed.fingerprint, current.start.fingerprint), reading)


def _shards(current: Round, settings: Imported, name: str, schema: pa.Schema, work: Work) -> Manifest:
    """Publish a table, a shard for so many records; one that is there is left alone."""
    table = Table(current.stage(name).uri, schema, (current.run.round(current.number) / "errors" / name).uri)
    found = preferences(settings)
    for number in count():
        records = list(islice(found, current.config.shard_rows))
        if not records:
            break
        if table.receipt(number) is None:
            started = time.perf_counter()
            output = work(records)
            table.publish(number, output, len(output.rows) + len(output.errors), time.perf_counter() - started)
    for folder in (table.uri, table.errors):
        Folder(folder).sweep()
    return total(name, table, current.config.max_failed_fraction)

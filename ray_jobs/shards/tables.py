"""Tables that stages write shard by shard."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa

from jsfree import schemas
from jsfree.errors import StageError
from jsfree.run.folder import READERS, Folder, shard_name
from jsfree.run.run import Manifest
from jsfree.run.streaming import scan
from jsfree.schemas import StageOutput
from ray_jobs.shards.receipts import Receipt


@dataclass(frozen=True)
class Table:
    """A table that a stage writes: its folder, its columns, and the folder of rows that failed."""

    uri: str
    schema: pa.Schema
    errors: str

    def publish(self, number: int, output: StageOutput, rows_in: int, seconds: float) -> Receipt:
        """Write a shard, after replacing the failed rows of an earlier attempt."""
        receipt = Receipt(
            shard=number,
            rows_in=rows_in,
            rows_out=len(output.rows),
            rows_failed=len(output.errors) - output.excluded,
            tokens=output.tokens,
            device_seconds=seconds,
            rows_excluded=output.excluded,
        )
        if output.errors:
            errors = pa.Table.from_pylist(output.errors, schema=schemas.ERRORS)
            Folder(self.errors).write_table(shard_name(number), errors)
        else:
            Folder(self.errors).remove(shard_name(number))
        table = pa.Table.from_pylist(output.rows, schema=self.schema)
        Folder(self.uri).write_table(shard_name(number), table, asdict(receipt))
        return receipt

    def receipt(self, number: int) -> Receipt | None:
        """The receipt of a shard; None if the shard is not finished."""
        folder, name = Folder(self.uri), shard_name(number)
        return Receipt(**folder.table_metadata(name)) if folder.exists(name) else None

    def receipts(self) -> list[Receipt]:
        """Receipts of all finished shards."""
        folder = Folder(self.uri)
        with ThreadPoolExecutor(READERS) as readers:
            metadata = readers.map(folder.table_metadata, map(shard_name, folder.shards()))
            return [Receipt(**each) for each in metadata]

    def remove_partial_files(self) -> None:
        """Remove the partial files of killed writers."""
        for uri in (self.uri, self.errors):
            Folder(uri).remove_partial_files()


def total_manifest(name: str, table: Table, max_failed_fraction: float) -> Manifest:
    """The manifest of the finished stage ``name``, summed over its shards, without fingerprint and wall time.

    Excluded rows do not count as failed; ``facts["excluded"]`` counts them if there are any.

    Raises:
        StageError: more rows failed than ``max_failed_fraction`` allows.
    """
    receipts = table.receipts()
    rows_in, failed = sum(r.rows_in for r in receipts), sum(r.rows_failed for r in receipts)
    if failed > max_failed_fraction * rows_in:
        errors = (row for rows in scan(Folder(table.errors), schemas.ERRORS) for row in rows.to_pylist())
        messages = (row["message"] for row in errors if row["kind"] != schemas.EVALUATION_IMAGE)
        raise StageError(
            f"stage {name!r}: {failed} of {rows_in} rows failed, more than max_failed_fraction"
            f" ({max_failed_fraction:g}) allows; first: {next(messages, 'not recorded')}",
            f"see {table.errors}",
        )
    excluded = sum(r.rows_excluded for r in receipts)
    return Manifest(
        rows_in=rows_in,
        rows_out=sum(r.rows_out for r in receipts),
        rows_failed=failed,
        device_seconds=sum(r.device_seconds for r in receipts),
        tokens=sum(r.tokens for r in receipts),
        facts={"excluded": excluded} if excluded else {},
    )

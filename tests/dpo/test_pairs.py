"""Pairs in shards are the pairs of a list: the same rows, the same index, and few of them in memory."""

import hashlib
import json
import random
from threading import Thread

import numpy as np
import pyarrow as pa
import pytest

from jsfree import schemas
from jsfree.config import build
from jsfree.dpo import pairs as pairs_module
from jsfree.dpo.loop import split_held_out
from jsfree.dpo.pairs import CACHED_GROUPS, PairIndex, PairTable, iterate
from jsfree.errors import StageError, StorageError
from jsfree.run.folder import Folder, shard_name


def caption(rng):
    tokens = [rng.randrange(300) for _ in range(rng.randint(1, 20))]
    return {"ratio": 0.5, "text": "é", "token_ids": tokens, "finish": "stop", "sentences": [], "score": 0.5}


def selected_row(number, rng):
    image = {
        "id": f"ü{number}",
        "uri": None,
        "bytes": rng.randbytes(50),
        "sha256": rng.choice([None, f"{number:064x}"]),
    }
    low, high = caption(rng), caption(rng)
    return {
        "sample_id": f"ü{number}@1",
        "image": image,
        "prompt": rng.choice(["Describe.", "What is it?"]),
        "low": low,
        "high": high,
        "chosen": low,
        "rejected": high,
        "seed": 0,
        "inverted": False,
        "gap": 0.1,
        "rank": number,
        "split": 1,
    }


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(1)
    return [selected_row(number, rng) for number in range(203)]


@pytest.fixture
def table(rows, tmp_path) -> PairTable:
    """The rows in shards of several row groups, the last one smaller."""
    folder = Folder(str(tmp_path / "selected"))
    for number, start in enumerate(range(0, len(rows), 50)):
        shard = pa.Table.from_pylist(rows[start : start + 50], schema=schemas.SELECTED)
        folder.write_table(shard_name(number), shard, group_rows=7)
    return PairTable(folder)


def read(row):
    """What training reads of a row."""
    tokens = {role: {"token_ids": row[role]["token_ids"]} for role in ("chosen", "rejected")}
    return {"sample_id": row["sample_id"], "image": row["image"], "prompt": row["prompt"], **tokens}


def test_pairs_are_read_by_position_and_in_order(rows, table):
    assert len(table) == len(rows)
    for position in random.Random(2).sample(range(len(rows)), len(rows)):
        assert table[position] == read(rows[position])
    assert list(table) == [read(row) for row in rows]
    with pytest.raises(IndexError):
        table[len(rows)]
    with pytest.raises(IndexError):
        table[-1]


def test_iterating_over_columns_reads_no_images(rows, table):
    found = list(iterate(table, ["image.sha256"]))
    assert found == [{"image": {"sha256": row["image"]["sha256"]}} for row in rows]
    assert list(iterate(rows, ["image.sha256"])) == rows


def test_a_table_caches_few_row_groups(table, monkeypatch):
    reads = []
    original = pairs_module.read_group
    monkeypatch.setattr(pairs_module, "read_group", lambda *asked: reads.append(asked[1:3]) or original(*asked))
    for position in (0, 1, 6, 0):
        table[position]
    assert reads == [(0, 0)]
    for position in range(0, 7 * (CACHED_GROUPS + 1), 7):
        table[position]
    table[0]  # its group had to go
    assert reads.count((0, 0)) == 2


def test_a_table_is_thread_safe(rows, table):
    found = {}

    def reading(seed):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        found[seed] = all(table[position]["sample_id"] == rows[position]["sample_id"] for position in order)

    threads = [Thread(target=reading, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_index_of_a_table_equals_that_of_a_list(rows, table, captioner, monkeypatch):
    """The digest is that of one JSON text of all pairs, which tables of references of earlier versions carry."""
    monkeypatch.setattr(pairs_module, "INDEX_CHUNK", 10)
    whole = json.dumps(
        [
            (row["sample_id"], row["prompt"], row["image"]["sha256"], *(row[r]["token_ids"] for r in ("low", "high")))
            for row in rows
        ]
    )
    for pairs in (rows, table):
        index = PairIndex.of(pairs, captioner)
        assert index.digest == hashlib.sha256(whole.encode()).hexdigest()[:16]
        assert index.lengths.tolist() == [len(row["low"]["token_ids"] + row["high"]["token_ids"]) for row in rows]


def test_a_pair_longer_than_the_context_is_found_anywhere(rows, captioner):
    long = {**rows[-1], "chosen": {**rows[-1]["chosen"], "token_ids": [1] * 600}}
    with pytest.raises(StageError, match=rf"pair {rows[-1]['sample_id']}: .*more than the 512 of the model"):
        PairIndex.of([*rows[:-1], long], captioner)


def test_split_covers_all_pairs(rows, table):
    config = build({"train": {"validation": {"pairs": 16}}}, where="test")
    trained, held_out = split_held_out(table, config)
    assert sorted([*trained.positions, *held_out.positions]) == list(range(len(rows)))
    assert np.all(np.diff(trained.positions) > 0)
    assert [pair["sample_id"] for pair in held_out] == [rows[at]["sample_id"] for at in held_out.positions]


def test_a_table_of_another_stage_is_refused(rows, tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_table(shard_name(0), pa.table({"sample_id": ["a"]}))
    with pytest.raises(StorageError, match=r"shard-00000\.parquet does not have the columns of this stage"):
        PairTable(folder)[0]

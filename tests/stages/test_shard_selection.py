"""Selecting from shards gives the same rows, order and facts as selecting from rows in memory."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree import schemas
from jsfree.config import Select
from jsfree.errors import StageError, StorageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.streaming import scan
from jsfree.stages import shard_selection
from jsfree.stages.pair_selection import select_pairs
from jsfree.stages.shard_selection import select_shards
from tests.support import literal_selection

SENTENCES = ("A cup.", "a  cup!", "Two dogs.", "Ein Hühnerstall — 家.", "A cat sits.")
SETTINGS = [
    {},
    {"splits": 1, "first": 1, "last": 1},
    {"splits": 7, "first": 1, "last": 6, "inverted": "drop"},
    {"splits": 3, "first": 1, "last": 2, "inverted": "keep", "keep_truncated": True},
    {"splits": 2, "first": 1, "last": 1, "repeating": "drop"},
    {"splits": 2, "first": 1, "last": 2, "repeating": "drop", "inverted": "keep", "max_pairs": 40},
    {"splits": 4, "first": 2, "last": 4, "max_pairs": 17},
    {"splits": 5, "first": 2, "last": 5, "inverted": "random", "repeating": "drop"},
    {"splits": 5, "first": 2, "last": 5, "inverted": "random", "max_pairs": 60},
    {"splits": 4, "first": 2, "last": 4, "max_pairs": 100_000},
]


def caption(rng):
    """A caption with one of a few scores, so that ties are common."""
    texts = rng.choices(SENTENCES, k=rng.randint(0, 4))
    return {
        "ratio": rng.choice([None, 0.25]),
        "text": " ".join(texts),
        "token_ids": [rng.randrange(300) for _ in range(rng.randint(1, 9))],
        "finish": "length" if rng.random() < 0.1 else "stop",
        "sentences": [{"text": text, "score": rng.random()} for text in texts],
        "score": rng.choice([-0.0, 0.0, 0.1, 0.2, 0.3, rng.random()]),
    }


def scored_row(number, rng):
    name = f"{'é' if number % 5 == 0 else 'p'}{number:04}"
    low, high = caption(rng), caption(rng)
    image = {"id": name, "uri": None, "bytes": rng.randbytes(rng.randint(1, 3000)), "sha256": None}
    return {
        "sample_id": f"{name}@1",
        "image": image,
        "prompt": "Describe.",
        "low": low,
        "high": high,
        "seed": number,
        "inverted": low["score"] < high["score"],
        "gap": abs(low["score"] - high["score"]),
    }


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(5)
    return [scored_row(number, rng) for number in rng.sample(range(400), 400)]


@pytest.fixture
def scored(rows, tmp_path) -> Folder:
    """The rows in shards of different sizes, one of them empty."""
    folder = Folder(str(tmp_path / "scored"))
    for number, (start, end) in enumerate([(0, 1), (1, 150), (150, 150), (150, 400)]):
        folder.write_table(shard_name(number), pa.Table.from_pylist(rows[start:end], schema=schemas.SCORED))
    return folder


@pytest.mark.parametrize("spilled", [False, True], ids=["in memory", "through files"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_order_and_facts_match_the_literal_selection(rows, scored, tmp_path, settings, spilled, monkeypatch):
    if spilled:
        monkeypatch.setattr(shard_selection, "BUCKET_BYTES", 20_000)
    expected, facts = literal_selection.select(rows, Select(**settings), 3)
    target = Folder(str(tmp_path / "selected"))
    choice = select_shards(scored, target, Select(**settings), 3, shard_rows=30)
    assert choice.facts == facts
    assert list(choice.facts) == list(facts)
    assert target.read_shards(schemas.SELECTED).to_pylist() == expected
    in_memory = select_pairs(rows, Select(**settings), 3)
    assert (in_memory.rows, in_memory.facts) == (expected, facts)


def test_temporary_files_are_removed_after_an_error(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(shard_selection, "BUCKET_BYTES", 20_000)
    (tmp_path / "temporary").mkdir()
    everything = Select(splits=1, first=1, last=1)
    seen = []

    class Failing(Folder):
        def write_table(self, *arguments, **options):
            seen.append(list((tmp_path / "temporary").rglob("*.arrows")))
            raise StorageError("the disk is gone")

    with pytest.raises(StorageError, match="the disk is gone"):
        select_shards(scored, Failing(str(tmp_path / "selected")), everything, 0, 30)
    assert seen[0]
    assert not list((tmp_path / "temporary").iterdir())


def test_the_error_for_an_unusable_temporary_folder_recommends_tmpdir(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/full/none")
    monkeypatch.setattr(shard_selection, "BUCKET_BYTES", 20_000)
    with pytest.raises(StorageError, match=r"temporary files for sorting in /dev/full/none .*set TMPDIR"):
        select_shards(scored, Folder(str(tmp_path / "selected")), Select(splits=1, first=1, last=1), 0, 30)


def test_shards_and_row_groups_are_limited_by_rows_and_bytes(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_selection, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(shard_selection, "GROUP_BYTES", 10_000)
    target = Folder(str(tmp_path / "selected"))
    choice = select_shards(scored, target, Select(splits=1, first=1, last=1), 0, shard_rows=50)
    files = [pq.ParquetFile(tmp_path / "selected" / shard_name(number)) for number in target.shards()]
    assert sum(file.metadata.num_rows for file in files) == choice.facts["kept"]
    assert max(file.metadata.num_rows for file in files) < 50
    groups = [file.read_row_group(group) for file in files for group in range(file.metadata.num_row_groups)]
    assert len(groups) > len(files)
    assert max(group.nbytes for group in groups) < 20_000


def test_shards_of_an_interrupted_attempt_are_removed(scored, tmp_path):
    target = Folder(str(tmp_path / "selected"))
    for number in range(40):
        target.write_table(shard_name(number), schemas.SELECTED.empty_table())
    choice = select_shards(scored, target, Select(), 0, shard_rows=50)
    assert target.count_rows() == choice.facts["kept"]
    assert len(target.shards()) < 40


def test_nothing_is_written_when_no_pair_remains(scored, tmp_path):
    target = Folder(str(tmp_path / "selected"))
    empty = Folder(str(tmp_path / "empty"))
    with pytest.raises(StageError, match="of 0 pairs"):
        select_shards(empty, target, Select(), 0, 30)
    assert not target.exists()


def test_only_requested_columns_are_read(scored, rows):
    found = [row for table in scan(scored, schemas.SCORED, ("low.score", "sample_id")) for row in table.to_pylist()]
    assert found == [{"sample_id": row["sample_id"], "low": {"score": row["low"]["score"]}} for row in rows]
    with pytest.raises(StorageError, match=r"shard-00000\.parquet does not have the columns of"):
        list(scan(scored, schemas.SELECTED, ("rank",)))

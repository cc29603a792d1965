"""Drawing samples from a stream gives the same result as sorting the complete listing."""

import hashlib
import json
import posixpath
import random
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.config import RunConfig
from jsfree.images import drawing
from jsfree.images.listing import Container, Entry
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.schemas import SAMPLES, sample_id
from tests.support.example_tars import packed

SEED = 7
ROWS = 3000


@pytest.fixture(autouse=True, params=[16, 65_536])
def chunk(request, monkeypatch):
    """Small chunks, so that entries are discarded while listing, and the default size."""
    monkeypatch.setattr(drawing, "CHUNK", request.param)


def settings(source, count, held_out=None, rounds=1):
    evaluate = {"kind": "miniworld", "split": "test", "count": 2} if held_out is None else {**source, "count": held_out}
    values = {"source": {**source, "count": count}, "evaluate": {"source": evaluate}, "seed": SEED, "rounds": rounds}
    return RunConfig.model_validate(values)


def literal(entries):
    """Reference order: (id, uri) of the first entry of each id, sorted by blake2b(seed, key) and id."""
    unique = {}
    for name, uri, key in entries:
        unique.setdefault(name, (name, uri, key))

    def rank(entry):
        return hashlib.blake2b(f"{SEED}/{entry[2]}".encode(), digest_size=16).digest(), entry[0]

    return [(name, uri) for name, uri, _ in sorted(unique.values(), key=rank)]


def rows_of(samples):
    return [(sample["image"]["id"], sample["image"]["uri"]) for sample in samples]


def expect_all_parts(source, expected):
    """Asserts that rounds and the evaluation set are the expected parts of the order."""
    assert rows_of(training_samples(settings(source, None), 1)) == expected
    for count, held_out, rounds in ((5, 3, 1), (40, 1, 3), (7, 200, 2), (len(expected) // 2, len(expected) // 2, 1)):
        chosen = settings(source, count, held_out, rounds)
        for number in range(1, rounds + 1):
            assert rows_of(training_samples(chosen, number)) == expected[(number - 1) * count : number * count]
        assert rows_of(evaluation_samples(chosen)) == expected[len(expected) - held_out :]
    rest = settings(source, None, 30)
    assert rows_of(training_samples(rest, 1)) == expected[:-30]
    assert rows_of(evaluation_samples(rest)) == expected[-30:]
    tail = settings(source, 100).model_copy(update={"rounds": 2})
    tail = tail.model_copy(
        update={"evaluate": tail.evaluate.model_copy(update={"source": settings(source, None).source})}
    )
    assert rows_of(evaluation_samples(tail)) == expected[200:]


@pytest.fixture
def names():
    rng = random.Random(3)
    return [f"{rng.choice('abc')}/{rng.randrange(1500):06d}.jpg" for _ in range(ROWS)]


def test_llava_json_is_drawn_in_the_reference_order(names, tmp_path):
    rows = [{"id": number, "image": name, "x": "é" * (number % 5)} for number, name in enumerate(names)]
    rows[3] = {"id": 3}
    rows[4]["image"] = "./a//b/../" + rows[4]["image"]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    kept = [posixpath.normpath(row["image"]) for row in rows if "image" in row]
    expected = literal((name, f"{tmp_path}/{name}", name) for name in kept)
    expect_all_parts({"kind": "llava_json", "path": str(tmp_path / "mix.json")}, expected)


def test_parquet_paths_with_and_without_ids_are_drawn_in_the_reference_order(names, tmp_path):
    ids = [None if number % 7 == 0 else number % 1000 for number in range(ROWS)]
    for table, columns in {"plain": {"image": names}, "ids": {"image": names, "id": ids}}.items():
        path = tmp_path / f"{table}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=700)
        keys = names if table == "plain" else [n if i is None else str(i) for n, i in zip(names, ids, strict=True)]
        expected = literal((key, f"{tmp_path}/{name}", key) for key, name in zip(keys, names, strict=True))
        expect_all_parts({"kind": "parquet", "path": str(path)}, expected)


def test_parquet_bytes_are_drawn_in_the_reference_order(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": [b"x"] * 1000, "id": [str(n % 900) for n in range(1000)]}), path, row_group_size=70
    )
    cells = [f"{path}#column=image&row_group={n // 70}&row={n % 70}" for n in range(1000)]
    expected = literal((str(n % 900), cell, str(n % 900)) for n, cell in enumerate(cells))
    expect_all_parts({"kind": "parquet", "path": str(path)}, expected)


def test_a_folder_is_drawn_in_the_reference_order(tmp_path):
    for number in range(600):
        path = tmp_path / str(number % 3) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [f"{number % 3}/{number}.png" for number in range(600)]
    expect_all_parts({"kind": "folder", "path": str(tmp_path)}, literal((n, f"{tmp_path}/{n}", n) for n in found))


def test_tar_files_with_shared_names_are_drawn_in_the_reference_order(tmp_path):
    entries, uses = [], {}
    for shard, numbers in {"a": range(300), "b": range(200, 500), "ab": range(290, 310)}.items():
        (tmp_path / f"{shard}.tar").write_bytes(packed({f"{number}.png": b"" for number in numbers}))
        for position, number in enumerate(numbers):
            uses.setdefault(f"{number}.png", []).append((shard, f"#offset={1024 * position + 512}&length=0"))
    for name, shards in uses.items():
        for shard, part in shards:
            entries.append((f"{shard}:{name}" if len(shards) > 1 else name, f"{tmp_path}/{shard}.tar{part}", name))
    for shard in ("a", "b", "ab"):  # empty members have no data block
        with tarfile.open(tmp_path / f"{shard}.tar") as tar:
            offsets = {member.name: member.offset_data for member in tar}
        entries = [
            (i, f"{tmp_path}/{shard}.tar#offset={offsets[key]}&length=0" if f"/{shard}.tar#" in uri else uri, key)
            for i, uri, key in entries
        ]
    expect_all_parts({"kind": "webdataset", "path": str(tmp_path)}, literal(entries))


def test_samples_match_the_schema(names, tmp_path):
    pq.write_table(pa.table({"image": names}), tmp_path / "x.parquet")
    chosen = settings({"kind": "parquet", "path": str(tmp_path / "x.parquet")}, 5)
    samples = list(training_samples(chosen, 1))
    assert pa.Table.from_pylist(samples, SAMPLES).to_pylist() == samples
    assert [sample["sample_id"] for sample in samples] == [sample_id(s["image"]["id"], chosen.prompt) for s in samples]
    assert {sample["prompt"] for sample in samples} == {chosen.prompt}


def test_a_drawn_image_takes_no_python_object(monkeypatch):
    monkeypatch.setattr(drawing, "CHUNK", 4096)
    place = Container("/images/")
    entries = (Entry(f"{number:012d}.jpg", place, f"{number:012d}.jpg") for number in range(30_000))
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    drawn = drawing.draw(entries, SEED)
    objects, arrays = tracemalloc.get_traced_memory()[0], pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(drawn) == 30_000
    assert (objects + arrays) / len(drawn) < 16 + 4 + 16 + 24  # id, its offset, container and order, plus the chunks


def test_entries_outside_the_requested_parts_are_discarded():
    place = Container("/images/")

    def kept(listed):
        before = pa.total_allocated_bytes()
        drawn = drawing.draw((Entry(f"{number:06d}", place, f"{number:06d}") for number in range(listed)), SEED, 50, 50)
        return len(drawn), pa.total_allocated_bytes() - before

    few, many = kept(2_000), kept(20_000)
    if drawing.CHUNK == 16:
        assert many[0] < 300
        assert many[1] < few[1] * 1.5
    assert many[0] >= 100


def test_entries_whose_hashes_share_one_half_stay_distinct():
    place = Container("/images/")
    halves = [(5, 2), (5, 1), (3, 9), (5, 2), (5, 1), (4, 0)]
    packed_entries = drawing._Packed()
    entries = [Entry(f"{first}-{last}", place, "x") for first, last in halves]
    packed_entries.append(entries, [first.to_bytes(8, "big") + last.to_bytes(8, "big") for first, last in halves])
    order, _ = drawing._ordered(packed_entries)
    assert order.tolist() == [2, 5, 1, 0]

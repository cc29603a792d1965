"""Images in Parquet tables are found for every column type, and read in place in bounded memory."""

import base64
import hashlib
import random
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.config import RunConfig
from jsfree.errors import SourceError
from jsfree.images import cells, tables
from jsfree.images.decoding import load_image
from jsfree.images.ranges import Cell
from jsfree.images.sources import training_samples
from tests.support.example_tars import LIMITS, failure, ids, picture

PICTURES = [picture(number) for number in range(4)]
BASE64 = [base64.b64encode(each).decode() for each in PICTURES]


def drawn(path, **source):
    source = {"kind": "parquet", "path": str(path), "count": None, **source}
    evaluate = {"source": {"kind": "miniworld", "split": "test", "count": 2}}
    return training_samples(RunConfig.model_validate({"source": source, "evaluate": evaluate}), 1)


def table(path, columns, names=None, group=2, **options):
    pq.write_table(pa.table(columns, names=names), path, row_group_size=group, **options)
    return path


def failed(samples):
    rows = [row for part in samples.unusable.tables("samples") for row in part.to_pylist()]
    return {row["sample_id"]: (row["kind"], row["message"]) for row in rows}


def expect_pictures(samples, expected):
    assert sorted(ids(samples)) == sorted(expected)
    for sample in samples:
        digest = load_image(sample["image"], LIMITS)[1]
        assert digest == hashlib.sha256(PICTURES[expected[sample["image"]["id"]]]).hexdigest()


NUMBERED = {f"x.parquet:{number}": number for number in range(4)}
STRUCTS = [{"bytes": each, "path": f"{number}.png"} for number, each in enumerate(PICTURES)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PICTURES, pa.binary()),
        pa.array(PICTURES, pa.large_binary()),
        pa.array(PICTURES, pa.binary_view()),
        pa.array(PICTURES).dictionary_encode(),
        pa.array(STRUCTS, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        pa.array(STRUCTS, pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})),
        pa.array(STRUCTS, pa.struct({"bytes": pa.binary()})),
    ],
    ids=lambda column: str(column.type)[:50],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_image_bytes_of_every_arrow_type_load(column, statistics, tmp_path):
    expect_pictures(drawn(table(tmp_path / "x.parquet", {"image": column}, write_statistics=statistics)), NUMBERED)


@pytest.mark.parametrize(
    "make",
    [
        lambda names: pa.array(names, pa.string()),
        lambda names: pa.array(names, pa.large_string()),
        lambda names: pa.array(names, pa.string_view()),
        lambda names: pa.array(names).dictionary_encode(),
    ],
)
def test_image_paths_of_every_arrow_type_load(make, tmp_path):
    names = [f"{number}.png" for number in range(4)]
    for name, content in zip(names, PICTURES, strict=True):
        (tmp_path / name).write_bytes(content)
    samples = drawn(table(tmp_path / "x.parquet", {"image": make(names), "id": make(["a", "b", "c", "d"])}))
    expect_pictures(samples, {"a": 0, "b": 1, "c": 2, "d": 3})
    expect_pictures(
        drawn(table(tmp_path / "x.parquet", {"image": make(names)})), dict(zip(names, range(4), strict=True))
    )


@pytest.mark.parametrize("statistics", [True, False])
def test_structs_use_their_bytes_or_else_their_path(statistics, tmp_path):
    (tmp_path / "own.png").write_bytes(PICTURES[2])
    values = [
        {"bytes": PICTURES[0], "path": "nowhere.png"},
        {"bytes": PICTURES[1], "path": None},
        {"bytes": None, "path": "own.png"},
        {"bytes": b"", "path": "own.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "own.png"},
        {"bytes": None, "path": "../x.png"},
    ]
    for group in (1, 2, 3, 8):
        samples = drawn(table(tmp_path / "x.parquet", {"image": values}, group=group, write_statistics=statistics))
        found = {sample["image"]["id"]: sample["image"] for sample in samples}
        assert sorted(found) == [f"x.parquet:{row}" for row in range(7)]
        digests = [load_image(found[f"x.parquet:{row}"], LIMITS)[1] for row in (0, 1, 2, 3, 6)]
        assert digests == [hashlib.sha256(PICTURES[number]).hexdigest() for number in (0, 1, 2, 2, 2)]
        assert {found[f"x.parquet:{row}"]["uri"] for row in (2, 3, 6)} == {f"{tmp_path}/own.png"}
        assert [failure(found[f"x.parquet:{row}"]).kind for row in (4, 5)] == ["missing", "missing"]
        assert failed(samples)["x.parquet:7"][0] == "outside"


def test_empty_ids_are_replaced_by_row_numbers(tmp_path):
    blank = ([" "] * 4, [b""] * 4, [[]] * 4, [{"a": None}] * 4)
    for column in (["", "", "", ""], [None] * 4, [float("nan")] * 4, pa.nulls(4), *blank):
        expect_pictures(drawn(table(tmp_path / "x.parquet", {"image": PICTURES, "id": column})), NUMBERED)
    samples = drawn(table(tmp_path / "x.parquet", {"image": PICTURES, "image_id": [1.5, float("nan"), None, 2.0]}))
    expect_pictures(samples, {"1.5": 0, "x.parquet:1": 1, "x.parquet:2": 2, "2.0": 3})


def test_duplicate_column_names_are_refused_with_a_remedy_in_the_error(tmp_path):
    for names in (["image", "image", "x"], ["image", "id", "id"]):
        path = table(tmp_path / "x.parquet", [PICTURES, PICTURES, list("abcd")], names)
        with pytest.raises(SourceError, match=rf"x\.parquet has 2 columns '{names[1]}'; rename or drop all but one"):
            drawn(path)


@pytest.mark.parametrize(
    "column",
    [
        [{"bytes": None, "path": None}] * 3,
        pa.array([{"bytes": None, "path": None}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        pa.nulls(3),
        pa.nulls(3, pa.binary()),
        ["", "", None],
    ],
)
def test_the_error_for_an_empty_column_suggests_a_column_of_paths(column, tmp_path):
    columns = {"id": ["a", "b", "c"], "image": column, "size": [1, 2, 3], "image_path": ["1.png", "2.png", "3.png"]}
    with pytest.raises(
        SourceError, match=r"'image' is empty in all of its 3 rows; set 'source\.column' to one of image_path$"
    ):
        drawn(table(tmp_path / "x.parquet", columns))


def test_base64_in_a_text_column_is_reported(tmp_path):
    with pytest.raises(SourceError, match=r"none of its 4 rows .* not a path; if it is base64, decode it"):
        drawn(table(tmp_path / "x.parquet", {"image": BASE64}))
    mixed = [
        "a.png",
        *BASE64[:1],
        "data:image/png;base64," + BASE64[0],
        "/9j/" + "4AAQSkZJRgABAQAAAQABAAD" * 6,
        "_9j_" + "4AAQSkZJRgABAQAAAQABAAD" * 6,
        "DATA:image/png;base64," + BASE64[0],
        "x" * 5000,
    ]
    samples = drawn(table(tmp_path / "x.parquet", {"image": mixed}))
    assert ids(samples) == ["a.png"]
    assert {kind for kind, _ in failed(samples).values()} == {"malformed"}
    assert len(failed(samples)) == 6


def test_invalid_utf8_in_a_text_column_is_an_error_row(tmp_path):
    texts = pa.array([b"a.png", b"caf\xe9.png", None], pa.binary()).view(pa.string())
    samples = drawn(table(tmp_path / "x.parquet", {"image": texts}))
    assert sorted(ids(samples)) == ["a.png", "x.parquet:2"]
    assert failed(samples)["x.parquet:1"][0] == "malformed"
    assert "row 1: cannot be read ('utf-8' codec can't decode byte 0xe9" in failed(samples)["x.parquet:1"][1]
    assert "b'caf\\xe9.png'" in failed(samples)["x.parquet:1"][1]
    samples = drawn(table(tmp_path / "x.parquet", {"image": PICTURES[:3], "id": texts}))
    assert sorted(ids(samples)) == ["a.png", "x.parquet:2"]


# --- reading


def test_an_id_that_python_cannot_represent_is_one_error_row(tmp_path):
    ids = pa.array([0, 2**62, 1], pa.int64()).cast(pa.timestamp("ms"))
    samples = drawn(table(tmp_path / "x.parquet", {"id": ids, "image": ["a.png", "b.png", "c.png"]}, group=3))
    assert len(samples) == 2
    assert failed(samples)["x.parquet:1"][0] == "malformed"
    assert "row 1: cannot be read" in failed(samples)["x.parquet:1"][1]


def test_rows_are_read_in_any_order_from_several_threads(tmp_path, monkeypatch):
    contents = [picture(number) for number in range(300)]
    path = table(tmp_path / "a#b.parquet", {"image": contents, "id": list(range(300))}, group=70)
    samples = list(drawn(path))
    for large, kept, at_once in ((2**25, 2**27, 2**23), (2**25, 5000, 2**23), (0, 0, 500), (2**25, 2**27, 1)):
        monkeypatch.setattr(cells, "LARGE_GROUP", large)
        monkeypatch.setattr(cells, "CACHE_BYTES", kept)
        monkeypatch.setattr(tables, "BYTES_AT_ONCE", at_once)
        monkeypatch.setattr(cells, "_READER", cells._CellReader())
        with ThreadPoolExecutor(8) as readers:
            digests = list(readers.map(lambda sample: load_image(sample["image"], LIMITS)[1], samples))
        expected = [hashlib.sha256(contents[int(sample["image"]["id"])]).hexdigest() for sample in samples]
        assert digests == expected
        held = sum(group.nbytes for group in cells._READER._groups.values())
        assert held <= max(kept, 70 * 200)


def test_a_remote_table_is_read(tmp_path):
    uri = f"memory://{uuid.uuid4().hex}/x.parquet"
    with fsspec.open(uri, "wb") as file:
        file.write(table(tmp_path / "x.parquet", {"image": PICTURES}).read_bytes())
    expect_pictures(drawn(uri), NUMBERED)


def test_a_replaced_or_deleted_table_is_not_read_from_the_cache(tmp_path):
    path = table(tmp_path / "x.parquet", {"image": PICTURES}, group=4)
    image = {sample["image"]["id"]: sample["image"] for sample in drawn(path)}["x.parquet:3"]
    assert load_image(image, LIMITS)[1] == hashlib.sha256(PICTURES[3]).hexdigest()
    table(path, {"image": PICTURES[::-1]}, group=4)
    assert load_image(image, LIMITS)[1] == hashlib.sha256(PICTURES[0]).hexdigest()
    table(path, {"image": PICTURES[:2]}, group=4)
    assert failure(image).kind == "unreadable"
    table(path, {"other": PICTURES}, group=4)
    assert "no column 'image'" in str(failure(image))
    path.write_text("no table")
    assert "is not a Parquet file" in str(failure(image))
    path.unlink()
    assert failure(image).kind == "missing"


def test_max_bytes_applies_to_images_in_tables(tmp_path):
    path = table(tmp_path / "x.parquet", {"image": [random.Random(0).randbytes(LIMITS.max_bytes + 1)]})
    (sample,) = drawn(path)
    assert failure(sample["image"]).kind == "too_many_bytes"


def test_a_row_group_too_large_for_the_cache_is_read_in_small_parts(tmp_path):
    content = [picture(number).ljust(100_000, b"\0") for number in range(600)]  # 60 MB in one group
    path = table(tmp_path / "x.parquet", {"image": content}, group=600, data_page_size=2**20, write_batch_size=4)
    cell = Cell(str(path), "image", 0, 599)
    cells._READER._groups.clear()
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    assert cells.read_cell(cell) == content[599]
    assert not cells._READER._groups
    assert pa.total_allocated_bytes() - before < 2**20
    assert pool.bytes_allocated() - before < 2**20


def test_listing_does_not_read_images(tmp_path, monkeypatch):
    path = table(tmp_path / "x.parquet", {"image": STRUCTS * 50, "id": list(range(200))}, group=50)
    read = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: read.append(k["columns"]) or real(*a, **k))
    assert len(drawn(path)) == 200
    assert read == [["id"]] * 4

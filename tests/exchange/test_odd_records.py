"""Unusable records among valid ones: each becomes an error row that can be written, and the other rows are kept."""

import json
import math
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree import schemas
from jsfree.config import Imported, build
from jsfree.errors import SourceError
from jsfree.exchange import UnusableRecord, preferences
from jsfree.exchange.pairs import ImportedPairs, samples
from tests.support.example_records import GOOD

HALF = "\ud83d"
DEEP = '{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}"


@cache
def reader() -> ImportedPairs:
    return ImportedPairs(build({}, where="test"), Imported(format="trl", path="-"), "miniworld:captioner")


def written(found: list) -> tuple[int, list[dict]]:
    """The number of rows and the error rows of records, after conversion to tables as in an import."""
    listed = samples(found)
    output = reader()(found)
    pa.Table.from_pylist(listed.rows, schema=schemas.SAMPLES)
    pa.Table.from_pylist(output.rows, schema=schemas.PAIRS)
    errors = listed.errors + output.errors
    pa.Table.from_pylist(errors, schema=schemas.ERRORS)
    return len(output.rows), errors


def imported(path, name: str = "trl", **changes) -> list:
    return list(preferences(Imported(format=name, path=str(path), **changes)))


def put(record, path: tuple, value):
    """A copy of a record with another value at a path of keys and indices."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value(inner.get(path[-1], "x") if isinstance(inner, dict) else inner[path[-1]])
    return copy


TEXTS = [
    *[("trl", (key,)) for key in ("prompt", "chosen", "rejected")],
    ("trl", ("images", 0)),
    ("ms-swift", ("messages", 0, "content")),
    ("ms-swift", ("messages", 1, "content")),
    ("ms-swift", ("messages", 1, "role")),
    ("ms-swift", ("rejected_response",)),
    ("ms-swift", ("images", 0)),
    ("llama-factory", ("conversations", 0, "value")),
    ("llama-factory", ("conversations", 0, "from")),
    ("llama-factory", ("rejected", "value")),
    *[("rlaif-v", (key,)) for key in ("question", "chosen", "idx", "image_path")],
    *[("povid", (key,)) for key in ("id", "image")],
    ("povid", ("rejected_conversations", 1, "value")),
]


@pytest.mark.parametrize("bad", [HALF, "\udcff", "\0"], ids=ascii)
@pytest.mark.parametrize(("name", "path"), TEXTS, ids=str)
def test_a_text_that_cannot_be_stored_is_an_error_row_with_its_key(tmp_path, name, path, bad):
    good = {**GOOD[name], "id": "8", "idx": "8"}
    odd = put(GOOD[name], path, lambda text: text[:1] + bad + text[1:])
    (tmp_path / "a.jsonl").write_text(json.dumps(odd) + "\n" + json.dumps(good))
    odd, kept = imported(tmp_path / "a.jsonl", name)
    assert isinstance(odd, UnusableRecord)
    assert odd.error.kind == "malformed"
    assert str(odd.error).startswith(f"{tmp_path}/a.jsonl, row 0: ")
    assert f"'{path[0].removesuffix('_path')}" in str(odd.error)
    rows, errors = written([odd, kept])
    assert (rows, len(errors)) == (1, 1)


def test_parts_of_messages_are_checked(tmp_path):
    def talk(role: str, *parts: object) -> list:
        return [{"role": role, "content": list(parts)}]

    rows = [
        {
            "images": ["a.png"],
            "prompt": talk("user", {"type": "image"}, {"type": "text", "text": "What?" + bad}),
            "chosen": talk("assistant", {"type": "text", "text": "A cat."}),
            "rejected": talk("assistant", {"type": "text", "text": other}),
        }
        for bad, other in [("", "A dog."), (HALF, "A dog."), ("", f"A{HALF}"), ("", 3), ("", math.nan)]
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = imported(tmp_path / "a.json")
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, True, True, True]
    assert written(found)[0] == 1


LINES = {
    "half a surrogate pair in a key": json.dumps({**GOOD["trl"], HALF: 1, "prompt": None}),
    "nested too deeply": DEEP,
    "more digits than Python reads": '{"prompt": ' + "7" * 5000 + "}",
    "a key twice": '{"chosen": "A cow.", ' + json.dumps(GOOD["trl"])[1:],
    "a key twice, inside": json.dumps(GOOD["trl"])[:-1] + ', "meta": {"a": 1, "a": 2}}',
    "a number": json.dumps({**GOOD["trl"], "chosen": 3}),
    "not a number": json.dumps({**GOOD["trl"], "chosen": math.nan}),
    "an infinite number": json.dumps({**GOOD["trl"], "images": [math.inf]}),
    "a list": "[]",
    "null": "null",
    "other keys": '{"x": 1}',
    "base64": json.dumps({**GOOD["trl"], "images": ["iVBORw0KGgo" * 1000]}),
    "a data URL": json.dumps({**GOOD["trl"], "images": ["data:image/png;base64,iVBORw0KGgo="]}),
    "an endless caption": json.dumps({**GOOD["trl"], "chosen": "cat " * 1_000_000}),
    "a conversation without end": json.dumps({**GOOD["trl"], "chosen": [{"role": "x" * 99}] * 9999}),
    "a role that is no text": json.dumps({**GOOD["trl"], "chosen": [{"role": [[["x"]]], "content": "A cat."}]}),
    "true": json.dumps({**GOOD["trl"], "prompt": True}),
}


@pytest.mark.parametrize("odd", LINES.values(), ids=LINES)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_an_unusable_row_is_one_error_row_at_any_position(tmp_path, odd, place, suffix):
    rows = [json.dumps({**GOOD["trl"], "prompt": f"What {number}?"}) for number in range(2)]
    rows.insert(place, odd)
    text = "\n".join(rows) if suffix == "jsonl" else "[" + ",\n".join(rows) + "]"
    (tmp_path / f"a.{suffix}").write_text(text)
    found = imported(tmp_path / f"a.{suffix}")
    assert [isinstance(each, UnusableRecord) for each in found] == [number == place for number in range(3)]
    told = str(found[place].error)
    assert told.startswith(f"{tmp_path}/a.{suffix}, row {place}: ")
    assert len(told) < 1000
    rows, errors = written(found)
    assert (rows, len(errors)) == (2, 1)


def test_line_endings_blank_lines_byte_order_marks_and_invalid_utf8(tmp_path):
    good = [json.dumps({**GOOD["trl"], "prompt": f"What {number}?"}).encode() for number in range(4)]
    broken = good[0].replace(b"cat", b"c\xe9t")
    content = b"\xef\xbb\xbf" + good[0] + b"\r\n\r\n  \t\n" + good[1] + b"\r\n" + broken + b"\n\xef\xbb\xbf" + good[2]
    (tmp_path / "a.jsonl").write_bytes(content)
    found = imported(tmp_path / "a.jsonl")
    assert [isinstance(each, UnusableRecord) for each in found] == [False, False, True, False]
    assert "a byte that is not UTF-8" in str(found[2].error)
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf [" + b",".join([good[0], broken, good[3]]) + b"]\r\n")
    found = imported(tmp_path / "b.json")
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, False]
    assert written(found)[0] == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_lines_in_another_encoding_are_read(tmp_path, encoding):
    rows = [{**GOOD["trl"], "prompt": f"Caf\u00e9 {number}?"} for number in range(2)]
    (tmp_path / "a.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(encoding))
    assert [each.prompt for each in imported(tmp_path / "a.jsonl")] == ["Caf\u00e9 0?", "Caf\u00e9 1?"]


def test_an_overlong_line_is_one_error_row(tmp_path, monkeypatch):
    from jsfree.images import json_rows

    monkeypatch.setattr(json_rows, "WINDOW", 100)
    monkeypatch.setattr(json_rows, "MAX_ROW", 1000)
    long = json.dumps({**GOOD["trl"], "chosen": "cat " * 5000})
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(GOOD["trl"]), long, json.dumps(GOOD["trl"]), long]))
    found = imported(tmp_path / "a.jsonl")
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, False, True]
    assert "row 1: has more than 1000 characters" in str(found[1].error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"prompt": "a"}, {"prompt": ', "is not valid JSON"),
        ('[{"prompt": "a"}] []', "unexpected text after the list"),
        ('[{"prompt": "a"', "Expecting ',' delimiter"),
        ("", "is not valid JSON"),
    ],
)
def test_a_truncated_list_is_one_error(tmp_path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=r"a\.json") as error:
        imported(tmp_path / "a.json")
    assert told in str(error.value)


def test_a_file_without_any_record_of_the_format_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"null\n{json.dumps({HALF: 1})}\n" * 200)
    with pytest.raises(SourceError, match=r"row 1 is not a trl record: it has no key 'prompt', only \\ud83d"):
        imported(tmp_path / "a.jsonl")


# Parquet


def column(kind: pa.DataType, values: list) -> pa.Array:
    plain = pa.array(values)
    return plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.large_string(), pa.string(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_texts_are_read_from_every_string_type(tmp_path, kind):
    texts = {"image_path": "a.png", "question": "What?", "chosen": "A cat.", "rejected": "A dog."}
    table = {name: column(kind, [text, None, text]) for name, text in texts.items()}
    table["idx"] = pa.array([1.0, 2.0, math.nan])
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    first, empty, last = imported(tmp_path / "a.parquet", "rlaif-v")
    assert (first.chosen, last.chosen) == ("A cat.", "A cat.")
    assert (first.id, last.id) == ("1.0", "a.parquet:2")
    assert empty.error.kind == "malformed"


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.binary()], ids=str)
def test_image_bytes_are_read_from_every_binary_type(tmp_path, kind):
    texts = {name: [text] * 2 for name, text in {"question": "?", "chosen": "A cat.", "rejected": "A dog."}.items()}
    paths = pa.array(["b.png", "b.png"])
    image = pa.StructArray.from_arrays([pa.array([b"PNG", None]).cast(kind), pa.array([None, None], pa.string())],
                                       ["bytes", "path"])  # fmt: skip
    pq.write_table(pa.table({**texts, "image": image, "image_path": paths, "idx": ["", "7"]}), tmp_path / "a.parquet")
    embedded, beside = imported(tmp_path / "a.parquet", "rlaif-v")
    assert (embedded.image["bytes"], embedded.id) == (b"PNG", "a.parquet:0")
    assert (beside.image["bytes"], beside.image["uri"]) == (None, f"{tmp_path}/b.png")


def test_an_undecodable_value_fails_only_its_own_row(tmp_path):
    broken = pa.StringArray.from_buffers(
        3, pa.array([0, 5, 7, 12], pa.int32()).buffers()[1], pa.py_buffer(b"A cat\xff\xfeA cow")
    )
    rest = {name: [text] * 3 for name, text in {"images": ["a.png"], "prompt": "What?", "rejected": "A dog."}.items()}
    pq.write_table(pa.table({**rest, "chosen": broken}), tmp_path / "a.parquet")
    found = imported(tmp_path / "a.parquet")
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, False]
    assert "row 1: cannot be read ('utf-8' codec can't decode byte 0xff" in str(found[1].error)
    assert written(found)[0] == 2


def test_two_columns_with_the_same_name_are_refused(tmp_path):
    names = ["images", "prompt", "chosen", "chosen", "rejected"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 5, names=names), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet has two columns 'chosen'; rename or remove one of them"):
        imported(tmp_path / "a.parquet")

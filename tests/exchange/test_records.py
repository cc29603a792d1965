"""Reading of record files. A file without records of the format is refused as a whole, with the remedy."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.config import Imported
from jsfree.errors import SourceError
from jsfree.exchange.records import records

TRL = {"images": ["a.png"], "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", '{"rows": []}', "a.json, row 0 is not a trl record: it has no key 'prompt'"),
        ("a.jsonl", "prompt,chosen", "a.jsonl is not valid JSON (row 0: "),
        ("a.jsonl", "3", "row 0 is int, expected keys and values; set 'imported.path' to files of trl records"),
        ("a.parquet", "PAR1", "a.parquet is not a Parquet file"),
        ("a.csv", "prompt", "a.csv is not a .parquet, .jsonl, .json file"),
        (
            "a.jsonl",
            json.dumps({"question": "", "chosen": "", "rejected": ""}),
            "row 0 is not a trl record: it has no key 'prompt', only question, chosen, rejected;"
            " set 'imported.format' to rlaif-v",
        ),
        (
            "a.jsonl",
            json.dumps({"text": ""}),
            "it has no key 'prompt', only text; convert it: no format has these keys",
        ),
    ],
)
def test_a_file_without_records_of_the_format_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError) as error:
        list(records(Imported(format="trl", path=str(tmp_path / name))))
    assert told in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_table_without_the_columns_of_the_format_is_refused(tmp_path):
    pq.write_table(pa.table({"photo": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"row 0 is not a .* has no key 'prompt', only photo, text"):
        list(records(Imported(format="trl", path=str(tmp_path / "a.parquet"))))


def test_a_missing_path_and_a_folder_without_records_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"absent does not exist; correct 'imported.path'"):
        list(records(Imported(format="trl", path=str(tmp_path / "absent"))))
    with pytest.raises(SourceError, match=r"contains no \.parquet, \.jsonl, \.json files"):
        list(records(Imported(format="trl", path=str(tmp_path))))


def test_files_of_a_folder_are_read_in_order_and_other_files_are_ignored(tmp_path):
    for name in ("b/2.jsonl", "a.json", "b/1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        row = {**TRL, "prompt": name}
        (tmp_path / name).write_text(json.dumps([row] if name.endswith(".json") else row))
    for name in ("dataset_info.json", "provenance.jsonl", "README.md"):
        (tmp_path / name).write_text("{}")
    found = list(records(Imported(format="trl", path=str(tmp_path))))
    assert [(each.file.name, each.row, each.record["prompt"]) for each in found] == [
        (name, 0, name) for name in ("a.json", "b/1.jsonl", "b/2.jsonl")
    ]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("count", [1, 2])
def test_lists_and_lines_are_recognised_by_content_not_by_file_name(tmp_path, name, count):
    rows = [{**TRL, "prompt": f"What {number}?"} for number in range(count)]
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows, indent=1)):
        (tmp_path / name).write_text(text)
        assert [each.record for each in records(Imported(format="trl", path=str(tmp_path)))] == rows


def test_an_empty_file_among_others_is_ignored(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").write_text(json.dumps(TRL))
    assert [each.file.name for each in records(Imported(format="trl", path=str(tmp_path)))] == ["b.jsonl"]


def test_memory_does_not_grow_with_the_length_of_a_list(tmp_path):
    row = json.dumps({**TRL, "rejected": "A dog. " * 1000})
    with (tmp_path / "a.json").open("w", encoding="utf-8") as file:
        file.writelines(f"{',' if number else '['}\n{row}" for number in range(9000))
        file.write("]")
    found = records(Imported(format="trl", path=str(tmp_path)))
    next(found)
    tracemalloc.start()
    try:
        assert sum(1 for _ in found) == 8999
        assert tracemalloc.get_traced_memory()[1] < 40e6  # the file has 64 MB
    finally:
        tracemalloc.stop()


def test_records_are_read_from_any_filesystem():
    import fsspec

    with fsspec.open("memory://exchange/a.jsonl", "w") as file:
        file.write(json.dumps(TRL))
    (found,) = records(Imported(format="trl", path="memory://exchange"))
    assert found.file.address == "memory:///exchange/a.jsonl"

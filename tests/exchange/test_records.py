"""Files that hold no records of the format: refused as a whole, with the remedy."""

import json

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
        ("a.json", "{", "a.json is no valid JSON"),
        ("a.json", json.dumps(TRL) + "\n" + json.dumps(TRL), "has it a record a line, name it .jsonl"),
        ("a.json", json.dumps(TRL), "a.json: expected a list of records, found dict"),
        ("a.jsonl", "prompt,chosen", "a.jsonl, row 0 is no valid JSON"),
        ("a.jsonl", "3", "row 0 is int, expected keys and values; 'imported.path' must name files of trl records"),
        ("a.parquet", "PAR1", "a.parquet is no Parquet file"),
        ("a.csv", "prompt", "a.csv is no .parquet, .jsonl, .json file"),
        (
            "a.jsonl",
            json.dumps({"question": "", "chosen": "", "rejected": ""}),
            "row 0 has no key 'prompt', so it is no trl record; it has question, chosen, rejected:"
            " set 'imported.format' to rlaif-v",
        ),
        ("a.jsonl", json.dumps({"text": ""}), "it has text: no format of jsfree has these keys"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError) as error:
        list(records(Imported(format="trl", path=str(tmp_path / name))))
    assert told in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_table_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"photo": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"row 0 has no key 'prompt'.*it has photo, text"):
        list(records(Imported(format="trl", path=str(tmp_path / "a.parquet"))))


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(SourceError, match=r"absent does not exist; correct 'imported.path'"):
        list(records(Imported(format="trl", path=str(tmp_path / "absent"))))
    with pytest.raises(SourceError, match=r"holds no \.parquet, \.jsonl, \.json files"):
        list(records(Imported(format="trl", path=str(tmp_path))))


def test_files_of_a_folder_come_in_order_and_what_lies_beside_them_is_passed_over(tmp_path):
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


def test_records_are_read_from_any_filesystem():
    import fsspec

    with fsspec.open("memory://exchange/a.jsonl", "w") as file:
        file.write(json.dumps(TRL))
    (found,) = records(Imported(format="trl", path="memory://exchange"))
    assert found.file.address == "memory:///exchange/a.jsonl"

"""Every format has exactly the keys that its readers expect, and exported pairs survive a round trip."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jsfree.config import Imported
from jsfree.exchange import UnusableRecord, export, preferences
from jsfree.exchange.formats import FORMATS

COMBINATIONS = [(name, placement) for name, layout in FORMATS.items() for placement in layout.placements]


@pytest.mark.parametrize(("name", "placement"), COMBINATIONS)
def test_exported_pairs_survive_a_round_trip(embedded, referring, said, expected, tmp_path, name, placement):
    run = referring if placement == "reference" else embedded
    out = tmp_path / "out"
    done = export(run, name, str(out), placement=placement)
    settings = Imported(format=name, path=str(out), allow_outside=placement == "reference")
    found = list(preferences(settings))
    assert not [each for each in found if isinstance(each, UnusableRecord)]
    assert said(found) == expected
    assert done.figures["exported"] == len(expected) > 20
    files = sorted(path.name for path in (out / "images").iterdir()) if (out / "images").exists() else []
    assert len(files) == (len({image for *_, image in expected}) if placement == "copy" else 0)
    assert all(file.endswith(".png") for file in files)


def test_a_moved_set_still_finds_its_images(embedded, said, expected, tmp_path):
    export(embedded, "ms-swift", str(tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / "moved")
    found = preferences(Imported(format="ms-swift", path=str(tmp_path / "moved" / "train.jsonl")))
    assert said(found) == expected


def test_ids_survive_in_formats_that_have_ids(embedded, rows_of, tmp_path):
    for name in ("povid", "rlaif-v"):
        export(embedded, name, str(tmp_path / name))
        found = preferences(Imported(format=name, path=str(tmp_path / name)))
        assert [each.id for each in found] == [row["image"]["id"] for row in rows_of(embedded)]


def first_record(out: Path) -> dict:
    if (out / "train.jsonl").exists():
        return json.loads((out / "train.jsonl").read_text().splitlines()[0])
    if (out / "train.json").exists():
        return json.loads((out / "train.json").read_text())[0]
    return pq.read_table(out / "data" / "train-00000.parquet").to_pylist()[0]


def test_trl_records_have_the_expected_keys(embedded, referring, tmp_path):
    export(embedded, "trl", str(tmp_path / "embedded"))
    export(referring, "trl", str(tmp_path / "referring"), placement="reference")
    record, line = first_record(tmp_path / "embedded"), first_record(tmp_path / "referring")
    assert list(record) == list(line) == ["images", "prompt", "chosen", "rejected"]
    assert record["images"][0].keys() == {"bytes", "path"}
    assert line["prompt"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": embedded.config.prompt}]}
    ]
    assert [turn["role"] for key in ("chosen", "rejected") for turn in line[key]] == ["assistant"] * 2
    assert Path(line["images"][0]).is_file()


def test_swift_records_have_the_expected_keys(embedded, tmp_path):
    export(embedded, "ms-swift", str(tmp_path / "out"))
    record = first_record(tmp_path / "out")
    assert list(record) == ["messages", "images", "rejected_response"]
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert record["messages"][0]["content"] == f"<image>{embedded.config.prompt}"
    assert (tmp_path / "out" / record["images"][0]).is_file()


def test_llama_factory_records_match_their_dataset_info(embedded, tmp_path):
    export(embedded, "llama-factory", str(tmp_path / "out"))
    record = first_record(tmp_path / "out")
    assert list(record) == ["conversations", "chosen", "rejected", "images"]
    assert record["conversations"] == [{"from": "human", "value": f"<image>{embedded.config.prompt}"}]
    assert record["chosen"].keys() == {"from", "value"}
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["jsfree"]
    assert info["ranking"] is True
    assert info["formatting"] == "sharegpt"
    assert set(info["columns"].values()) == set(record)
    assert (tmp_path / "out" / info["file_name"]).is_file()


def test_rlaif_records_have_the_columns_of_the_published_set(embedded, tmp_path):
    export(embedded, "rlaif-v", str(tmp_path / "out"))
    record = first_record(tmp_path / "out")
    published = "ds_name image question chosen rejected origin_dataset origin_split idx image_path"
    assert list(record) == published.split()
    assert record["image"].keys() == {"bytes", "path"}
    assert json.loads(record["origin_split"]) == {"model": "miniworld:captioner"}


def test_povid_records_have_the_expected_keys(embedded, tmp_path):
    export(embedded, "povid", str(tmp_path / "out"))
    record = first_record(tmp_path / "out")
    assert list(record) == ["id", "image", "conversations", "rejected_conversations"]
    for key in ("conversations", "rejected_conversations"):
        assert [turn["from"] for turn in record[key]] == ["human", "gpt"]
        assert record[key][0]["value"] == f"<image>\n{embedded.config.prompt}"
    assert record["conversations"][1] != record["rejected_conversations"][1]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("trl", {"image": "a.png", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}),
        (
            "trl",
            {
                "images": [{"bytes": None, "path": "a.png"}],
                "prompt": [{"role": "user", "content": "<image>What?"}],
                "chosen": [{"role": "assistant", "content": "A cat."}],
                "rejected": [{"role": "assistant", "content": "A dog."}],
            },
        ),
        (
            "ms-swift",
            {
                "messages": [
                    {"role": "user", "content": "What?<image>"},
                    {"role": "assistant", "content": "A cat. "},
                ],
                "images": [{"path": "a.png"}],
                "rejected_response": "A dog.",
            },
        ),
        (
            "rlaif-v",
            {"question": "What?", "chosen": "A cat.", "rejected": "A dog.", "image_path": "a.png", "idx": 7},
        ),
    ],
)
def test_variants_written_by_other_tools_are_read(tmp_path, name, record):
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n\n")
    settings = Imported(format=name, path=str(tmp_path / "records.jsonl"), images="/pictures/")
    (pair,) = preferences(settings)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("What?", "A cat.", "A dog.")
    assert pair.image["uri"] == "/pictures/a.png"
    assert pair.id == ("7" if name == "rlaif-v" else "records.jsonl:0")

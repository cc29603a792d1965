"""Exports of a run with verified sentences: where its composed captions are, and what the card says of them."""

import copy
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from jsfree import schemas
from jsfree.config import Imported
from jsfree.exchange import export, preferences
from jsfree.exchange.formats import FORMATS

EXTENDED = ("trl", "llama-factory", "povid")


@pytest.fixture(scope="module")
def rows(verified) -> list[dict]:
    """The selected pairs of the run."""
    return verified.stage(1, "selected").read_shards(schemas.COMPOSED).to_pylist()


def records(folder) -> list[dict]:
    if (folder / "train.jsonl").exists():
        return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    if (folder / "train.json").exists():
        return json.loads((folder / "train.json").read_text())
    return [row for file in sorted((folder / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def fields_of(row: dict) -> dict:
    """What an exported record says about how the pair of a selected row was formed."""
    target = row["target"]
    return {
        "provenance": row["provenance"],
        "composed": {"role": target["role"], "text": target["text"], "edits": target["edits"]},
    }


@pytest.mark.parametrize("name", FORMATS)
def test_composed_captions_are_in_the_formats_whose_readers_allow_them(verified, embedded, rows, tmp_path, name):
    done = export(verified, name, str(tmp_path / "out"))
    export(embedded, name, str(tmp_path / "plain"))
    found, plain = records(tmp_path / "out"), records(tmp_path / "plain")
    expected = ["provenance", "composed"] if name in EXTENDED else []
    assert list(found[0]) == [*plain[0], *expected]
    if expected:
        assert [{key: each[key] for key in expected} for each in found] == [fields_of(row) for row in rows]
    told = [json.loads(line) for line in (tmp_path / "out" / "provenance.jsonl").read_text().splitlines()]
    assert [{key: each[key] for key in ("provenance", "composed")} for each in told] == [fields_of(row) for row in rows]
    back = preferences(Imported(format=name, path=done.uri))
    assert [(pair.chosen, pair.rejected) for pair in back] == [
        (row["chosen"]["text"], row["rejected"]["text"]) for row in rows
    ]


@pytest.mark.parametrize("placement", ["embed", "copy"])
def test_datasets_read_the_further_columns(verified, rows, tmp_path, monkeypatch, placement):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    export(verified, "trl", str(tmp_path / "out"), placement=placement)
    data = datasets.load_dataset(str(tmp_path / "out"), split="train")
    read, written = data[3]["composed"], copy.deepcopy(fields_of(rows[3])["composed"])
    logits = [[edit.pop("logit") for edit in each["edits"]] for each in (read, written)]
    assert read == written
    assert logits[0] == pytest.approx(logits[1])
    assert data[3]["provenance"] == rows[3]["provenance"]


def test_the_card_says_how_captions_were_verified_and_composed(verified, rows, tmp_path):
    done = export(verified, "trl", str(tmp_path / "out"))
    export(verified, "rlaif-v", str(tmp_path / "strict"))
    card, strict = ((tmp_path / name / "README.md").read_text() for name in ("out", "strict"))
    edited = sum(row["provenance"]["edit"] != "none" for row in rows)
    assert done.figures["edited"] == edited > 0
    assert f"{edited} pairs, the chosen one with a sentence omitted or repeated" in card
    assert "by its CLIP cosine and the captioner's own probability of its tokens" in card
    assert "It generated 2 further captions at ratio 0." in card
    assert "Composed captions are in the field `composed` of each record and `provenance.jsonl`" in card
    assert "Composed captions are in `provenance.jsonl`" in strict
    assert "whose scores contradict their order" not in card
    assert "| images that gave no pair | 0 |" in card
    assert "dropped for identical captions" not in card


def test_gaps_are_in_units_of_coverage(verified, rows, tmp_path):
    done = export(verified, "povid", str(tmp_path / "out"))
    gaps = [row["gap"] for row in rows]
    assert done.figures["strategy"] == "coverage"
    assert (done.figures["gap"]["min"], done.figures["gap"]["max"]) == pytest.approx((min(gaps), max(gaps)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{sum(gaps) / len(gaps):.2f} on average" in card
    assert "Coverage of the chosen caption minus that of the rejected one." in card
    assert "Mean sentence score" not in card


def test_scored_pairs_are_those_of_stage_one(verified, tmp_path):
    done = export(verified, "povid", str(tmp_path / "out"), pairs="scored")
    assert (done.figures["strategy"], done.figures["edited"]) == ("gap", None)
    assert "composed" not in records(tmp_path / "out")[0]
    scored = verified.stage(1, "scored").read_shards(schemas.SCORED).to_pylist()
    chosen = {row["image"]["id"]: row["high" if row["inverted"] else "low"]["text"] for row in scored}
    found = list(preferences(Imported(format="povid", path=done.uri)))
    assert Counter(pair.chosen == chosen[pair.id] for pair in found) == {True: len(found)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Mean sentence score (CLIP cosine) of the chosen caption minus that of the rejected one, × 100" in card
    assert "composed" not in card

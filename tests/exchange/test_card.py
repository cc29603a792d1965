"""The figures on the dataset card equal those counted by hand in the rows."""

import pytest
import yaml

from jsfree import schemas
from jsfree.exchange import export
from jsfree.exchange.card import histogram
from jsfree.run.run import Run
from jsfree.stages.pair_selection import select_pairs
from tests.support import example_run

SCORES = [(0.30, 0.20), (0.30, 0.28), (0.25, 0.29), (0.31, 0.31)]
"""CLIP scores of low and high; the third pair is inverted, the last one has identical captions."""
RATIOS = [(0.0, 0.2), (0.0, 0.4), (0.1, 0.9), (0.0, 0.5)]


def caption(text, ratio, score) -> dict:
    sentences = [{"text": text, "score": score}]
    return {
        "ratio": ratio, "text": text, "token_ids": [5, 2], "finish": "stop", "sentences": sentences, "score": score
    }  # fmt: skip


@pytest.fixture
def run(embedded, tmp_path) -> Run:
    select = {"splits": 1, "first": 1, "last": 1}
    config = embedded.config.model_copy(update={"run": str(tmp_path / "run")})
    run = Run.open(config.model_copy(update={"select": config.select.model_copy(update=select)}))
    rows = []
    for number, ((low, high), ratios) in enumerate(zip(SCORES, RATIOS, strict=True)):
        texts = ("A cat.", "A cat." if number == 3 else "A dog.")
        captions = [caption(*each) for each in zip(texts, ratios, (low, high), strict=True)]
        row = dict(zip(("low", "high"), captions, strict=True))
        row |= {"seed": 0, "inverted": low < high, "gap": abs(low - high)}
        rows.append({**example_run.sample(run, "unlabelled", number), **row})
    chosen = select_pairs(rows, run.config.select, 0)
    example_run.write_rows(run, 1, "pairs", [], schemas.PAIRS)
    example_run.write_rows(run, 1, "scored", rows, schemas.SCORED)
    example_run.write_rows(run, 1, "selected", chosen.rows, schemas.SELECTED, **chosen.facts)
    return run


def test_figures_match_the_rows(run, tmp_path):
    found = export(run, "trl", str(tmp_path / "out")).figures
    assert {key: found[key] for key in ("exported", "scored", "identical", "truncated", "selected", "left_out")} == {
        "exported": 3, "scored": 4, "identical": 1, "truncated": 0, "selected": 3, "left_out": 0
    }  # fmt: skip
    assert found["inverted_share"] == pytest.approx(1 / 3)
    assert found["scored_inverted_share"] == pytest.approx(1 / 4)
    assert found["ratios"]["low"] == pytest.approx({"mean": 0.1 / 3, "min": 0.0, "max": 0.1})
    assert found["ratios"]["high"] == pytest.approx({"mean": 0.5, "min": 0.2, "max": 0.9})
    assert found["gap"] == pytest.approx({"mean": 16 / 3, "min": 2.0, "max": 10.0})
    assert [each["pairs"] for each in found["gaps"]] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert (found["gaps"][0]["from"], found["gaps"][9]["to"]) == pytest.approx((2.0, 10.0))


def test_the_card_shows_the_figures_and_has_valid_front_matter(run, tmp_path):
    export(run, "trl", str(tmp_path / "out"))
    _, head, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert told["size_categories"] == ["n<1K"]
    assert told["license"] == "unknown"
    for line in (
        "| pairs scored | 4 |",
        "| dropped for identical captions | 1 |",
        "| **in this set** | 3 |",
        "| inverted by CLIP, of all scored | 25.0% |",
        "| inverted by CLIP, in this set | 33.3% |",
        "| the higher ratio | 0.500 | 0.200 | 0.900 |",
        "| 2.00 to 2.80 | 1 | ████████████████████████████████████████ |",
        "| captioner | `miniworld:captioner` |",
        "| judge of sentences | CLIP |",
        "Prompt: `Describe image in detail.`",
        f"| configuration | {run.config.own_fingerprint} |",
    ):
        assert f"\n{line}\n" in body, line


def test_imported_pairs_have_an_unknown_ratio(run, tmp_path):
    imported = {"imported": {"format": "povid", "path": "/theirs.json"}}
    config = run.config.model_validate({**run.config.model_dump(), **imported})
    rows = run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()
    for row in rows:
        for role in ("low", "high", "chosen", "rejected"):
            row[role]["ratio"] = None
    example_run.write_rows(Run(config), 1, "selected", rows, schemas.SELECTED)
    done = export(Run(config), "trl", str(tmp_path / "out"))
    assert done.figures["ratios"] == {"low": None, "high": None}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| the lower ratio | unknown | unknown | unknown |" in card
    assert "imported (povid: `/theirs.json`)" in card


def test_a_histogram_of_equal_values_fills_one_bin():
    assert [each["pairs"] for each in histogram([3.0, 3.0])] == [2, *[0] * 9]

"""What people read of a run with two scorers: the page, the exported pairs and their card, and the model card."""

import re

import pytest

from jsfree import schemas
from jsfree.exchange import export
from jsfree.publishing.model_card import card as model_card
from jsfree.report import reading, scenes
from jsfree.report.page import render
from ray_jobs.stages.select import describe_agreement
from tests.report.test_page import Page
from tests.support import example_run

SECOND = {"ref": "ViT-SO400M-16-SigLIP2-384", "pretrained": "webli"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_run.build(
        tmp_path_factory.mktemp("runs") / "two", clip={"ref": "miniworld:clip", "second": SECOND}, errors=False
    )


@pytest.fixture(scope="module")
def facts(run):
    return run.manifest(1, "selected").facts


@pytest.fixture(scope="module")
def rows(run):
    return run.stage(1, "scored").read_shards(schemas.scored_schema(0, 2)).to_pylist()


def verdicts(row):
    return tuple(row[f"{prefix}low"]["score"] < row[f"{prefix}high"]["score"] for prefix in ("", "second_"))


def test_the_page_reports_the_agreement(run, facts, rows):
    words = Page(render(run)).words
    different = [verdicts(row) for row in rows if row["low"]["text"] != row["high"]["text"]]
    share = 100 * sum(first == second for first, second in different) / len(different)
    counts = (different.count((True, True)), different.count((True, False)), different.count((False, True)))
    assert counts[1], counts[2]
    assert f"miniworld:clip and {SECOND['ref']} (webli)" in words
    assert f"They agree about the order of {share:.1f} % of the {len(different)} pairs" in words
    assert f"Cohen’s kappa {facts['agreement']['kappa']:.2f}" in words
    assert "inverted by both {}, only by the first {}, only by the second {}".format(*counts) in words
    assert f"{facts['disagreed']} on which they disagree were dropped" in words
    assert "score gap of the pair (in units of the scorers’ spreads)" in words
    assert "second scorer" in words


def test_the_outcomes_of_pairs_are_those_of_the_selection(run, rows, facts):
    selected = {row["sample_id"]: row for row in run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()}
    scored = reading.scored_pairs(run.stage(1, "scored"), 2)
    assert scored.spread_S.tolist() == facts["agreement"]["spreads"]
    kept = [split for split in facts["splits"] if 4 <= split["split"] <= 7]
    bounds = (kept[0]["low_gap"], kept[-1]["high_gap"])
    outcomes = {}
    for pair in reading.pair_summaries(run.stage(1, "scored"), scored.spread_S):
        outcomes[pair.sample_id] = scenes.pair_outcome(pair, selected, bounds, run.config.select)
        if pair.sample_id in selected:
            assert pair.gap == pytest.approx(selected[pair.sample_id]["gap"])
    for row in rows:
        first, second = verdicts(row)
        if outcomes[row["sample_id"]] == "left out, the scorers disagree":
            assert first != second
        elif "kept" in outcomes[row["sample_id"]]:
            assert outcomes[row["sample_id"]] == f"kept, order {'inverted' if first and second else 'confirmed'}"
    assert list(outcomes.values()).count("left out, the scorers disagree") == facts["disagreed"]


def test_the_terminal_line_names_agreement_and_dropped_pairs(facts):
    line = describe_agreement(facts)
    found = re.fullmatch(
        r"The scorers agree on ([\d.]+)% of (\d+) pairs \(Cohen's kappa (0\.\d\d)\); (\d+) pairs .*", line
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * facts["agreement"]["share"], abs=0.05)
    assert int(found[4]) == facts["disagreed"]


def test_scored_pairs_are_exported_without_those_on_which_the_scorers_disagree(run, rows, tmp_path):
    done = export(run, "trl", str(tmp_path / "out"), pairs="scored")
    agreed = [row for row in rows if len(set(verdicts(row))) == 1 and row["low"]["text"] != row["high"]["text"]]
    assert done.figures["exported"] == len(agreed)


def test_the_cards_name_both_scorers(run, facts, tmp_path):
    text = model_card(run, 1)
    assert f"`miniworld:clip` and `{SECOND['ref']}`, webli, which must agree" in text
    done = export(run, "trl", str(tmp_path / "out"))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"| CLIP | `miniworld:clip`, `{SECOND['ref']} (webli)` |" in readme
    assert f"| dropped because the CLIP models disagree | {facts['disagreed']} |" in readme
    assert "each in units of its own spread" in readme
    assert done.figures["gap"]["mean"] == pytest.approx(
        sum(row["gap"] for row in run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()) / facts["kept"]
    )

"""Drift of the pairs over rounds, against medians and shares computed from the rows."""

import re
import statistics

import pytest

from jsfree import schemas
from jsfree.report import reading
from jsfree.report.drift import drift_panels
from tests.support import example_run


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    run = example_run.build(tmp_path_factory.mktemp("run") / "two", rounds=2, truth=False, errors=False)
    scored = {number: reading.scored_pairs(run.stage(number, "scored")) for number in (1, 2)}
    return run, {title(str(panel)): str(panel) for panel in drift_panels(run, scored)}, scored


def title(panel: str) -> str:
    return re.search(r'panel-title"[^>]*>([^<]*)<', panel)[1]


def shown(panel: str) -> str:
    return re.search(r'aria-label="([^"]*)"', panel)[1]


def test_gaps_and_lengths_are_medians_of_the_pairs(panels):
    run, found, _ = panels
    rows = {number: run.stage(number, "scored").read_shards(schemas.SCORED).to_pylist() for number in (1, 2)}
    gaps = [statistics.median(100 * abs(row["low"]["score"] - row["high"]["score"]) for row in rows[n]) for n in (1, 2)]
    assert f"1 {gaps[0]:.3g}, 2 {gaps[1]:.3g}" in shown(found["Gap of mean sentence scores, × 100"])
    words = shown(found["Words of a caption: low ratio ●, high ratio ■"])
    for role in ("low", "high"):
        medians = [statistics.median(len(row[role]["text"].split()) for row in rows[n]) for n in (1, 2)]
        assert f"{role}: 1 {medians[0]:.3g}, 2 {medians[1]:.3g}" in words


def test_shares_are_of_all_pairs(panels):
    run, found, _ = panels
    inverted = [run.manifest(number, "selected").facts["inverted_share"] for number in (1, 2)]
    assert f"1 {100 * inverted[0]:.3g}, 2 {100 * inverted[1]:.3g}" in shown(found["Inverted pairs, %"])
    assert f"1 {100 / 120:.3g}, 2 {100 / 120:.3g}" in shown(found["Identical captions, %"])


def test_one_round_has_no_drift(panels):
    run, _, scored = panels
    assert drift_panels(run, {1: scored[1]}) == []

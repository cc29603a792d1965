"""The summary of an ablation and its page, from run folders as the stages write them."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from jsfree.ablation import page, results
from jsfree.ablation.definition import Ablation, load
from jsfree.ablation.results import CellRun, Summary, run_path
from jsfree.run.folder import Folder
from jsfree.run.record import update_record
from tests.support import example_run

CELLS = {"low": {"train.beta": 0.1}, "high": {"train.beta": 1}, "later": {"train.beta": 9}}
SEEDS = (0, 4)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two finished cells with two seeds, and a cell that failed."""
    folder = tmp_path_factory.mktemp("ablation")
    for cell, value in (("low", 0.1), ("high", 1)):
        for seed in SEEDS:
            path = folder / run_path(cell, seed)
            run = example_run.build(path, errors=False, train={"beta": value}, seed=seed)
            update_record(run, status="done")
            measured = run.round(1).read_json("metrics.json")
            measured["after"]["greedy"]["recall"] = {"value": value / 2 + seed / 100, "low": 0.0, "high": 1.0}
            run.round(1).write_json("metrics.json", measured)
    return folder


def ablation_in(folder: Path, **entries) -> Ablation:
    (folder / "base.yaml").write_text("{}", encoding="utf-8")
    content = {
        "name": "betas",
        "description": "Beta & more.",
        "base": "base.yaml",
        "seeds": list(SEEDS),
        "cells": CELLS,
    }
    (folder / "file.yaml").write_text(yaml.safe_dump({**content, **entries}, sort_keys=False), encoding="utf-8")
    return load(folder / "file.yaml")


def summarised(out: Path, ablation: Ablation) -> Summary:
    runs = [CellRun(cell, seed, run_path(cell, seed)) for cell in ("low", "high") for seed in SEEDS]
    return results.summarise(ablation, Folder(str(out)), [*runs, CellRun("later", 0, run_path("later", 0), "no GPU")])


def test_metrics_are_means_and_ranges_over_the_seeds(out, tmp_path):
    summary = summarised(out, ablation_in(tmp_path))
    recall = {name: cell["after"].get("greedy", {}).get("recall") for name, cell in summary["cells"].items()}
    assert recall["low"] == pytest.approx({"mean": 0.07, "min": 0.05, "max": 0.09})
    assert recall["high"] == pytest.approx({"mean": 0.52, "min": 0.5, "max": 0.54})
    assert recall["later"] is None
    run = summary["cells"]["high"]["runs"]["4"]
    assert run["after"]["greedy"]["recall"] == {"value": 0.54, "low": 0.0, "high": 1.0}
    assert "clip_score" in run["before"]["sampled"]
    assert (run["status"], run["run"], run["pairs"]) == (
        "done",
        "cells/high/seed-4",
        run["stages"]["round-1/selected"]["rows"],
    )
    assert summary["cells"]["high"]["settings"] == {"train.beta": 1}


def test_a_failed_run_keeps_its_error_and_counts_in_no_mean(out, tmp_path):
    summary = summarised(out, ablation_in(tmp_path))
    assert summary["cells"]["later"]["runs"]["0"]["status"] == "failed"
    assert summary["cells"]["later"]["runs"]["0"]["error"] == "no GPU"
    assert summary["cells"]["later"]["after"] == {}


def test_costs_of_reused_stages_count_once(out, tmp_path):
    run = out / run_path("high", 0)
    manifest = Folder(str(run)) / "round-1/pairs"
    original = manifest.read_json("_manifest.json")
    whole = summarised(out, ablation_in(tmp_path))
    assert whole["device_seconds"] == pytest.approx(whole["device_seconds_unshared"])
    manifest.write_json("_manifest.json", {**original, "reused_from": str(out / run_path("low", 0))})
    try:
        shared = summarised(out, ablation_in(tmp_path))
    finally:
        manifest.write_json("_manifest.json", original)
    assert shared["device_seconds_unshared"] == pytest.approx(whole["device_seconds"])
    assert whole["device_seconds"] - shared["device_seconds"] == pytest.approx(original["device_seconds"])
    assert "pairs" in page.run_line("high", "0", shared["cells"]["high"]["runs"]["0"]).reused
    assert "pairs" not in page.run_line("low", "0", shared["cells"]["low"]["runs"]["0"]).reused


def test_the_table_has_one_row_of_m0_if_all_cells_share_it(out, tmp_path):
    summary = summarised(out, ablation_in(tmp_path))
    for cell in summary["cells"].values():
        cell["before"] = summary["cells"]["low"]["before"] if cell["after"] else {}
    greedy, sampled = page.mode_tables(summary)
    assert (greedy.mode, sampled.mode) == ("greedy", "sampled")
    assert [(row.name, row.is_seed_model) for row in greedy.rows] == [("m0", True), ("low", False), ("high", False)]
    recall = [metric.name for metric in greedy.metrics].index("recall")
    assert [(row.cells[recall].value, row.cells[recall].interval) for row in greedy.rows[1:]] == [
        ("7.0", "5.0 to 9.0"), ("52.0", "50.0 to 54.0"),
    ]  # fmt: skip


def test_cells_with_another_m0_have_a_row_of_their_own(out, tmp_path):
    summary = summarised(out, ablation_in(tmp_path))
    summary["cells"]["high"]["before"]["greedy"]["recall"]["mean"] = 0.99
    names = [row.name for row in page.mode_tables(summary)[0].rows]
    assert names == ["m0 (low)", "m0 (high)", "low", "high"]


class Links(HTMLParser):
    """Collects what a page links to and loads, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_cells_and_links_to_the_reports_of_their_runs(out, tmp_path):
    read = Links(page.render(summarised(out, ablation_in(tmp_path))))
    reports = [link for link in read.links if not link.startswith(("#", "data:"))]
    assert reports == [f"{run_path(cell, seed)}/report/index.html" for cell in ("low", "high") for seed in SEEDS]
    for expected in ("Beta & more.", "4 of 5 done", "no GPU", "train.beta: 9", "Greedy captions", "Recall, %"):
        assert expected in read.text
    assert "nan" not in read.text.lower()


def test_the_figure_follows_the_axes_of_the_grid(out, tmp_path):
    grid = {"train.beta": [0.1, 1], "kind": {"a": {"train.epochs": 1}, "b": {"train.epochs": 2}}}
    figure = {"x": "train.beta", "series": "kind", "metrics": ["recall"]}
    summary = summarised(out, ablation_in(tmp_path, grid=grid, cells={}, figure=figure))
    done = summarised(out, ablation_in(tmp_path))["cells"]
    assert summary["cells"] == {}
    for kind, cell in (("a", done["low"]), ("b", done["high"])):
        summary["cells"][f"beta=0.1,kind={kind}"] = {**cell, "labels": {"train.beta": "0.1", "kind": kind}}
    (panel,) = page.panels(summary)
    assert "Recall, % by train.beta: a: 0.1 7; b: 0.1 52" in panel
    assert [label for _, label in page.legend(summary)] == ["a", "b"]


def test_an_ablation_without_results_has_a_page(tmp_path):
    ablation = ablation_in(tmp_path)
    summary = results.summarise(ablation, Folder(str(tmp_path)), [CellRun("low", 0, run_path("low", 0))])
    assert "0 of 1 done" in Links(page.render(summary)).text

"""Builds the report: ``build_report(run)`` reads a run's folder and writes ``report/index.html`` into it.

The page is one file without scripts, external fonts or links: it opens from a disk, an object store or an attachment,
and its content security policy forbids every request. All data in it is escaped by jinja.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsfree.evaluation.metrics import LABEL_FREE, TRUTH
from jsfree.evaluation.rounds_stop import good_rounds, stop_of
from jsfree.images.overlap import measure_overlap
from jsfree.report import by_round, drift, galleries, reading, sections, summary, tables
from jsfree.report.benchmarks import benchmark_views
from jsfree.report.composed import composed_gallery
from jsfree.report.reconstructions import reconstruction_views
from jsfree.report.scenes import SHADES
from jsfree.report.stop_rule import stop_view
from jsfree.run.run import Run
from jsfree.schemas import EVALUATION_IMAGE


def build_report(run: Run) -> str:
    """Write the page of ``run`` and return its path or URI.

    The page shows what the run holds so far; missing parts are left out or marked as missing.

    Raises:
        StorageError: a file of the run is damaged, or the page cannot be written.
    """
    folder = run.folder / "report"
    folder.write("index.html", render(run).encode())
    return f"{folder.uri}/index.html"


def render(run: Run) -> str:
    """The page of ``run`` as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jsfree.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": tables.percent, "whole": tables.whole}
    return environment.get_template("template.html.j2").render(_content(run))


def _content(run: Run) -> dict[str, Any]:
    """The variables of the template."""
    rounds, scorers = reading.finished_rounds(run), len(run.config.clip.scorers)
    modes = list(run.config.evaluate.modes)
    with_truth = _measured(run, rounds, "metrics.json")
    without_truth = _measured(run, rounds, "label_free.json")
    good = good_rounds(run, rounds)
    truth = tables.comparisons(with_truth, TRUTH, modes, good)
    label_free = tables.comparisons(without_truth, LABEL_FREE, modes, good)
    scored = {number: reading.scored_pairs(run.stage(number, "scored"), scorers) for number in rounds}
    views = [sections.round_view(run, number, scored[number]) for number in rounds]
    chosen = next((view for view in reversed(views) if view.splits), None)
    scenes_known = bool(truth) and run.config.evaluate.source.kind == "miniworld"
    low_score = next((found["low_score"] for _, found in reversed(without_truth) if "low_score" in found), None)
    done = reading.evaluated_rounds(run)
    return {
        "config": run.config,
        "yaml": run.config.to_yaml(),
        "about": reading.json_or_empty(run.folder, "run.json"),
        "rounds": views,
        "truth": truth,
        "truth_curves": by_round.metric_curves(truth, TRUTH),
        "label_free_curves": by_round.metric_curves(label_free, LABEL_FREE),
        "drift": drift.drift_panels(run, scored),
        "stop": stop_view(run),
        "stopped": stop_of(run),
        "scenes_known": scenes_known,
        "label_free": label_free,
        "benchmarks": benchmark_views(run),
        "reconstructions": reconstruction_views(run, ["m0", *(f"m{number}" for number in good)]),
        "summary": summary.summarise(truth, label_free),
        "overlap": measure_overlap(run, done[-1] if done else 0),
        "excluded_kind": EVALUATION_IMAGE,
        "evaluated": _count(with_truth, "scenes") or _count(without_truth, "captions"),
        "low_score": tables.cosine(low_score),
        "pairs": galleries.pair_gallery(run, chosen.number, scored[chosen.number], chosen.kept) if chosen else None,
        "composed": composed_gallery(run, chosen.number) if chosen else None,
        "captions": galleries.caption_gallery(run, done, scenes_known, low_score) if done else None,
        "shades": SHADES,
        "cost": sections.cost_view(reading.costs(run, rounds)),
        "failures": reading.failures(run, rounds),
    }


def _measured(run: Run, rounds: Sequence[int], name: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, reading.json_or_empty(run.round(number), name)) for number in rounds]


def _count(measured: Sequence[tuple[int, dict[str, Any]]], key: str) -> int:
    """The number of captions measured per model in the last round that has it."""
    return next((int(found[key]) for _, found in reversed(measured) if key in found), 0)

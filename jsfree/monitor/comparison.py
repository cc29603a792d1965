"""Two runs side by side: the settings that differ, the metrics of their results, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jsfree import config as configuration
from jsfree import schemas
from jsfree.errors import RunError
from jsfree.evaluation import miniworld
from jsfree.evaluation.labelfree import caption_counts
from jsfree.evaluation.metrics import LABEL_FREE, TRUTH, Metric
from jsfree.evaluation.statistics import FloatArray, Interval, Statistic, bootstrap, divide
from jsfree.miniworld import world
from jsfree.report import reading
from jsfree.run.run import Run
from jsfree.run.streaming import scan

_COLUMNS = ("one", "scored", "score", "empty", "words", "sentences", "low", "repeated", "truncated")
"""Numbers of a caption whose sums the label-free metrics are computed from."""


@dataclass(frozen=True)
class MetricComparison:
    """A metric of both results, each with its 95 % interval.

    ``difference`` is second - first on the images that both runs evaluated, with the 95 % interval of a bootstrap over
    these images; None if there are none, or if the metric is undefined or not comparable.
    """

    metric: str
    first: Mapping[str, float] | None
    second: Mapping[str, float] | None
    difference: Mapping[str, float] | None


@dataclass(frozen=True)
class ModeComparison:
    """The metrics in one evaluation mode; ``images`` is the number of images that both runs evaluated."""

    mode: str
    with_truth: bool
    images: int
    metrics: list[MetricComparison]


@dataclass(frozen=True)
class RunComparison:
    """Two runs; ``models`` are their results, and ``settings`` those that differ, with both values."""

    runs: tuple[str, str]
    models: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    modes: list[ModeComparison]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return asdict(self)


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Compare the results of two runs.

    Raises:
        RunError: one of them has not been evaluated.
        StorageError: a file of a run cannot be read.
    """
    rounds = [_result_round(run) for run in (first, second)]
    files = [_measured(run, number) for run, number in zip((first, second), rounds, strict=True)]
    modes = []
    for metrics, with_truth in ((TRUTH, True), (LABEL_FREE, False)):
        both = [found.get(with_truth, {}).get("after", {}) for found in files]
        for mode in [mode for mode in both[0] if mode in both[1]]:
            pairs = _pairs((first, second), rounds, mode)
            differences = _truth(pairs) if with_truth else _label_free(pairs, *_scales(first, second, files))
            modes.append(_compare(mode, metrics, with_truth, (both[0][mode], both[1][mode]), len(pairs), differences))
    return RunComparison(
        (first.folder.uri, second.folder.uri),
        (f"m{rounds[0]}", f"m{rounds[1]}"),
        configuration.changed_settings(first.config, second.config),
        modes,
    )


def _result_round(run: Run) -> int:
    done = reading.evaluated_rounds(run)
    if not done:
        raise RunError(f"{run.folder.uri} has not been evaluated yet", "wait for its first metrics (jsfree watch)")
    return done[-1]


def _measured(run: Run, number: int) -> dict[bool, dict[str, Any]]:
    """The metrics of a round: with truth (True) and label-free (False), where it has them."""
    folder = run.round(number)
    names = {True: "metrics.json", False: "label_free.json"}
    return {truth: folder.read_json(name) for truth, name in names.items() if folder.exists(name)}


def _scales(first: Run, second: Run, files: Sequence[Mapping[bool, Any]]) -> tuple[bool, float | None]:
    """Whether the sentence scores of both runs have the same scale, and their threshold of a low score if it is one."""
    changed = configuration.changed_settings(first.config, second.config)
    if any(key.partition(".")[0] in ("clip", "score") for key in changed):
        return False, None
    first_low, second_low = (found[False].get("low_score") for found in files)
    return True, first_low if first_low == second_low else None


def _compare(
    mode: str,
    metrics: Sequence[Metric],
    with_truth: bool,
    measured: tuple[Mapping[str, Any], Mapping[str, Any]],
    images: int,
    differences: Mapping[str, Interval],
) -> ModeComparison:
    lines = []
    for metric in metrics:
        first, second = (side.get(metric.name) for side in measured)
        difference = differences.get(metric.name)
        if difference is not None and math.isnan(difference.value):
            difference = None
        if first is not None or second is not None:
            lines.append(MetricComparison(metric.name, first, second, difference and difference.as_json()))
    return ModeComparison(mode, with_truth, images, lines)


Row = dict[str, Any]
"""A scored caption: ``text``, ``finish``, ``sentences``, ``score``, and its image's id and hash."""


def _pairs(runs: Sequence[Run], rounds: Sequence[int], mode: str) -> list[tuple[Row, Row]]:
    """Captions of both results of the same images with the same prompts."""
    first, second = (_captions(run, number, mode) for run, number in zip(runs, rounds, strict=True))
    return [(row, second[key]) for key, row in first.items() if key in second]


def _captions(run: Run, number: int, mode: str) -> dict[tuple[str, str | None], Row]:
    folder = run.stage(number, f"captions_scored/m{number}-{mode}")
    columns = ["sample_id", "image.id", "image.sha256", "text", "finish", "sentences", "score"]
    rows = (row for table in scan(folder, schemas.SCORED_CAPTIONS, columns) for row in table.to_pylist())
    return {(row["sample_id"], row["image"]["sha256"]): row for row in rows}


def _truth(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Interval]:
    """Differences of the metrics of ``metrics.json``, whose images are scenes of MiniWorld."""
    columns = [[_scene_columns(row) for row in pair] for pair in pairs]
    return paired_differences(columns, miniworld.STATISTICS)


def _scene_columns(row: Row) -> tuple[int, ...]:
    scene = world.scene_from_id(row["image"]["id"])
    return miniworld.count_columns(miniworld.count_caption(scene, row["text"]))


def _label_free(pairs: Sequence[tuple[Row, Row]], same_scale: bool, low_score: float | None) -> dict[str, Interval]:
    """Differences of the metrics of ``label_free.json``, without those whose scores or thresholds differ."""
    threshold = float("-inf") if low_score is None else low_score
    columns = [[_caption_columns(row, threshold) for row in pair] for pair in pairs]
    omitted = {"clip_score": not same_scale, "low_clip_sentences": low_score is None}
    return paired_differences(columns, {name: of for name, of in _STATISTICS.items() if not omitted.get(name)})


def _caption_columns(row: Row, low_score: float) -> tuple[float, ...]:
    is_scored = bool(row["sentences"])
    return (
        1,
        is_scored,
        row["score"] if is_scored else 0.0,
        not row["text"].strip(),
        *caption_counts(row, low_score),  # type: ignore[arg-type]
    )


def _mean(numerator: str, denominator: str = "one") -> Callable[[FloatArray], FloatArray]:
    top, bottom = _COLUMNS.index(numerator), _COLUMNS.index(denominator)
    return lambda sums_RK: divide(sums_RK[:, top], sums_RK[:, bottom])


_STATISTICS: dict[str, Statistic] = {
    "clip_score": _mean("score", "scored"),
    "low_clip_sentences": _mean("low", "sentences"),
    "sentences": _mean("sentences"),
    "words": _mean("words"),
    "repeated_sentences": _mean("repeated"),
    "truncated": _mean("truncated"),
    "empty": _mean("empty"),
}


def paired_differences(
    pairs_N2K: Sequence[Sequence[Sequence[float]]], statistics: Mapping[str, Statistic]
) -> dict[str, Interval]:
    """Differences (second - first) of statistics over N images, by name; empty without images.

    Args:
        pairs_N2K: the columns of both captions of each image, whose sums the statistics take.
        statistics: map column sums (R, K) to values (R,).
    """
    if not pairs_N2K:
        return {}
    first_NK, second_NK = np.moveaxis(np.asarray(pairs_N2K, np.float64), 1, 0)
    both_NC, size = np.concatenate((first_NK, second_NK), 1), first_NK.shape[1]

    def difference(of: Statistic) -> Statistic:
        return lambda sums_RC: of(sums_RC[:, size:]) - of(sums_RC[:, :size])

    return {name: bootstrap(both_NC, difference(of)) for name, of in statistics.items()}

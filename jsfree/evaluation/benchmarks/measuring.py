"""Metrics of a benchmark as formulas of summed counts, their intervals, and paired differences between models.

A suite counts things in each answer (``CountRow``). The counts of an image are added up (``CountTable``), because
answers about one image depend on each other, and every metric is a formula of the sums over images. So pooled rates,
means and harmonic means all have the same bootstrap over images.

Shapes: I images, K columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from jsfree.errors import ConfigError
from jsfree.evaluation.metrics import Metric
from jsfree.evaluation.statistics import (
    RESAMPLES,
    UNDEFINED,
    FloatArray,
    Interval,
    bootstrap,
    divide,
)

Sums = Mapping[str, FloatArray]
"""Sums over images by column, each (R,)."""
Formula = Callable[[Sums], FloatArray]
"""Maps sums to a metric, (R,); NaN where the metric is undefined."""


@dataclass(frozen=True)
class Measure:
    """A metric with its formula."""

    metric: Metric
    formula: Formula

    @property
    def name(self) -> str:
        """The metric's key in result files."""
        return self.metric.name


@dataclass(frozen=True)
class CountRow:
    """What was counted in one answer about an image.

    ``counts`` may lack columns whose count is 0. ``group`` is a part of the benchmark that is also reported by itself,
    such as a category of images.
    """

    image_id: str
    counts: Mapping[str, float]
    group: str = ""


class Difference(NamedTuple):
    """A metric of one model minus that of another on the same images, with its 95 % interval.

    ``p`` is the two-sided p-value of the paired randomisation test; all are NaN if the difference is undefined.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class CountTable:
    """Counts by image: ``counts_IK[i, k]`` is column ``columns[k]`` of image ``images[i]``."""

    images: tuple[str, ...]
    columns: tuple[str, ...]
    counts_IK: FloatArray = field(repr=False)

    @classmethod
    def of(cls, rows: Iterable[CountRow]) -> CountTable:
        """Add up the rows of each image; images keep the order of their first rows."""
        by_image: dict[str, dict[str, float]] = {}
        for row in rows:
            total = by_image.setdefault(row.image_id, {})
            for column, count in row.counts.items():
                total[column] = total.get(column, 0) + count
        columns = tuple(sorted({column for total in by_image.values() for column in total}))
        counts = [[total.get(column, 0) for column in columns] for total in by_image.values()]
        return cls(tuple(by_image), columns, np.array(counts, np.float64).reshape(len(by_image), len(columns)))

    def only(self, images: Sequence[str]) -> CountTable:
        """The table of the given images, in their order.

        Raises:
            KeyError: an image is not in the table.
        """
        numbers = {image: number for number, image in enumerate(self.images)}
        return CountTable(tuple(images), self.columns, self.counts_IK[[numbers[image] for image in images]])

    def sums(self) -> dict[str, float]:
        """Sum of every column."""
        return dict(zip(self.columns, self.counts_IK.sum(0).tolist(), strict=True))

    def evaluate(self, formula: Formula, sums_RK: FloatArray) -> FloatArray:
        """A formula of sums of this table's columns, (R, K) -> (R,); columns that the table lacks are 0."""
        return np.asarray(formula(_Columns(self.columns, sums_RK)), np.float64)


class _Columns(dict[str, FloatArray]):
    """Columns of sums by name; one that does not exist is 0 everywhere."""

    def __init__(self, columns: Sequence[str], sums_RK: FloatArray) -> None:
        super().__init__({name: sums_RK[:, number] for number, name in enumerate(columns)})
        self._zeros = np.zeros(len(sums_RK))

    def __missing__(self, column: str) -> FloatArray:
        return self._zeros


def ratio(numerator: str, denominator: str) -> Formula:
    """A pooled ratio: the sum of one column over that of another."""
    return lambda sums: divide(sums[numerator], sums[denominator])


def complement(formula: Formula) -> Formula:
    """1 minus a formula."""
    return lambda sums: 1.0 - formula(sums)


def harmonic_mean(first: Formula, second: Formula) -> Formula:
    """The harmonic mean of two formulas; 0 where both are 0."""

    def formula(sums: Sums) -> FloatArray:
        one, other = first(sums), second(sums)
        mean = divide(2 * one * other, one + other)
        return np.where(one + other == 0, 0.0, mean)

    return formula


def measure(
    table: CountTable, measures: Iterable[Measure], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Every metric of a table with its 95 % bootstrap interval over images, by name.

    Raises:
        ConfigError: the table has no images.
    """
    return {
        each.name: bootstrap(table.counts_IK, partial(table.evaluate, each.formula), resamples, seed)
        for each in measures
    }


def differences(
    after: CountTable, before: CountTable, measures: Iterable[Measure], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Every metric of ``after`` minus that of ``before``, by name, on the images that both have.

    Raises:
        ConfigError: no image is in both tables.
    """
    known = set(before.images)
    common = [image for image in after.images if image in known]
    if not common:
        raise ConfigError("no image was measured with both models", "compare answers about the same images")
    pair = after.only(common), before.only(common)
    return {each.name: _difference(*pair, each.formula, resamples, seed) for each in measures}


def _difference(after: CountTable, before: CountTable, formula: Formula, resamples: int, seed: int) -> Difference:
    width = len(after.columns)

    def change(sums_RK: FloatArray) -> FloatArray:
        return after.evaluate(formula, sums_RK[:, :width]) - before.evaluate(formula, sums_RK[:, width:])

    both_IK = np.concatenate((after.counts_IK, before.counts_IK), 1)
    interval = bootstrap(both_IK, change, resamples, seed)
    if math.isnan(interval.value):
        return Difference(*UNDEFINED, math.nan)
    return Difference(*interval, _randomisation_p(after, before, formula, interval.value, resamples, seed))


def _randomisation_p(
    after: CountTable, before: CountTable, formula: Formula, observed: float, resamples: int, seed: int
) -> float:
    """Share of random exchanges of the models' answers, image by image, that give a difference as large.

    The observed arrangement counts as one of them, so the p-value is never 0.
    """
    columns = tuple(sorted({*after.columns, *before.columns}))
    after_IK, before_IK = (_aligned(table, columns) for table in (after, before))
    kept_RI = np.random.default_rng(seed).integers(0, 2, (resamples, len(after.images))).astype(np.float64)
    first_RK = kept_RI @ after_IK + (1 - kept_RI) @ before_IK
    second_RK = (1 - kept_RI) @ after_IK + kept_RI @ before_IK
    table = CountTable(after.images, columns, after_IK)
    exchanged = table.evaluate(formula, first_RK) - table.evaluate(formula, second_RK)
    exchanged = exchanged[~np.isnan(exchanged)]
    extreme = int((np.abs(exchanged) >= abs(observed) - 1e-12).sum())
    return (1 + extreme) / (1 + len(exchanged))


def _aligned(table: CountTable, columns: Sequence[str]) -> FloatArray:
    """The counts of a table in the given columns, (I, K)."""
    numbers = {column: number for number, column in enumerate(table.columns)}
    zeros = np.zeros(len(table.images))
    return np.stack([table.counts_IK[:, numbers[name]] if name in numbers else zeros for name in columns], 1)

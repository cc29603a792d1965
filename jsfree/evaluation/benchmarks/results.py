"""The result file of a suite: ``<run>/evaluation/<model>/<suite>.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jsfree
from jsfree.evaluation.benchmarks.base import Answer, Measured, Suite
from jsfree.evaluation.benchmarks.contamination import Contamination
from jsfree.evaluation.benchmarks.measuring import CountRow, CountTable, Measure, differences, measure, ratio
from jsfree.evaluation.labelfree import bigrams, distinct_share
from jsfree.evaluation.metrics import LABEL_FREE
from jsfree.evaluation.statistics import RESAMPLES
from jsfree.stages.sentences import count_repeated, sentences

_LABEL_FREE = {metric.name: metric for metric in LABEL_FREE}
VARIETY = replace(_LABEL_FREE["distinct_2"], secondary=False)
"""A model that repeats safe phrases says less. No paired test: it is a property of all answers together."""
CAPTION_MEASURES = (
    Measure(_LABEL_FREE["words"], ratio("caption_words", "captions")),
    Measure(_LABEL_FREE["repeated_sentences"], ratio("caption_repeats", "captions")),
)
"""Metrics of every suite whose answers are captions: a hallucination rate says little without them."""


@dataclass(frozen=True)
class Result:
    """The result of one suite for one model.

    ``generation`` describes how the answers were made, or names their file. ``compared`` are the count tables of other
    models by name, from which paired differences are computed. ``contamination`` has the images that a round trained
    on.
    """

    suite: Suite
    model: str
    answers: Sequence[Answer]
    measured: Measured
    generation: Mapping[str, Any]
    questions: int
    failed: int = 0
    compared: Mapping[str, CountTable] = field(default_factory=dict)
    contamination: Contamination | None = None
    resamples: int = RESAMPLES

    @property
    def rows(self) -> list[CountRow]:
        """The suite's counts, and those of captions."""
        captions = map(caption_row, self.answers) if self.suite.describes_images else ()
        return [*self.measured.rows, *captions]

    def as_json(self) -> dict[str, Any]:
        """The content of the result file; undefined metrics are null.

        Raises:
            ConfigError: no answer was scored.
        """
        table = CountTable.of(self.rows)
        variety = self._variety()
        return {
            "suite": self.suite.name,
            "title": self.suite.title,
            "source": self.suite.source,
            "model": self.model,
            "protocol": dict(self.suite.protocol),
            "notes": [*self.measured.notes, *self._contamination_notes(table)],
            "versions": {"jsfree": jsfree.__version__},
            "generation": dict(self.generation),
            "judge": None if self.measured.judge is None else dict(self.measured.judge),
            "counts": {
                "questions": self.questions,
                "answers": len(self.answers),
                "images": len(table.images),
                "failed": self.failed,
                "not_scored": len(self.measured.errors),
            },
            "sums": table.sums(),
            "described_metrics": [
                *(asdict(measure.metric) for measure in measures_of(self.suite)),
                *(asdict(VARIETY) for _ in variety),
            ],
            "metrics": measured_json(table, measures_of(self.suite), self.resamples) | variety,
            "groups": self._groups(),
            "contamination": self._contamination(table),
            "differences": self._differences(table),
            "errors": [dict(error) for error in self.measured.errors],
            "details": [dict(detail) for detail in self.measured.details],
        }

    def _variety(self) -> dict[str, Any]:
        """Distinct bigrams of all answers, which is no formula of sums over images; empty where it is not reported."""
        if not (self.suite.describes_images or self.suite.measures_variety):
            return {}
        share = distinct_share([bigrams(answer.text) for answer in self.answers])
        return {VARIETY.name: _as_json(share._asdict())}

    def _contamination(self, table: CountTable) -> dict[str, Any] | None:
        """The images that were trained on, and the metrics of the other ones; None if no run was looked at."""
        if self.contamination is None:
            return None
        rest = self._clean(table)
        measured = measured_json(rest, measures_of(self.suite), self.resamples) if rest.images else None
        return {**self.contamination.as_json(), "metrics_without": measured}

    def _clean(self, table: CountTable) -> CountTable:
        """The images that were not trained on."""
        found = set(self.contamination.found) if self.contamination else set()
        return table.only([image for image in table.images if image not in found])

    def _contamination_notes(self, table: CountTable) -> list[str]:
        if self.contamination is None:
            return []
        rest = self._clean(table)
        if not self.contamination.found or not rest.images:
            return [str(self.contamination)]
        shown = self.suite.measures[:3]
        values = measure(rest, shown, self.resamples)
        texts = (f"{each.metric.label} {each.metric.format_with_unit(values[each.name].value)}" for each in shown)
        return [f"{self.model}: {self.contamination} On the others: {', '.join(texts)}."]

    def _groups(self) -> dict[str, Any]:
        names = dict.fromkeys(row.group for row in self.measured.rows if row.group)
        tables = {name: CountTable.of(row for row in self.measured.rows if row.group == name) for name in names}
        return {
            name: {"images": len(table.images), "metrics": measured_json(table, self.suite.measures, self.resamples)}
            for name, table in tables.items()
        }

    def _differences(self, table: CountTable) -> dict[str, Any]:
        return {
            other: {
                name: _as_json(difference._asdict())
                for name, difference in differences(table, before, measures_of(self.suite), self.resamples).items()
            }
            for other, before in self.compared.items()
        }


def measures_of(suite: Suite) -> tuple[Measure, ...]:
    """The metrics of a suite, and those of captions if its answers are captions."""
    return (*suite.measures, *(CAPTION_MEASURES if suite.describes_images else ()))


def caption_row(answer: Answer) -> CountRow:
    """Length and repetition of a caption."""
    counts = {
        "captions": 1,
        "caption_words": len(answer.text.split()),
        "caption_repeats": count_repeated(sentences(answer.text)),
    }
    return CountRow(answer.image_id, counts)


def measured_json(table: CountTable, measures: Iterable[Measure], resamples: int) -> dict[str, Any]:
    """Metrics of a table, each ``{"value", "low", "high"}``."""
    return {name: _as_json(interval._asdict()) for name, interval in measure(table, measures, resamples).items()}


def _as_json(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}

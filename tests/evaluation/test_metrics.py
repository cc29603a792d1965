"""The table of metrics matches what is computed, and formats values for readers."""

import math

from jsfree.evaluation import labelfree, miniworld
from jsfree.evaluation.metrics import LABEL_FREE, TRUTH, Metric
from jsfree.miniworld.world import scene

RATE = Metric("rate", "Rate", "", "lower")
COUNT = Metric("count", "Count", "", None, 1.0, "")


def test_negative_values_have_a_minus_sign_and_zero_has_none():
    assert RATE.format(-0.1234, sign=True) == "−12.3"
    assert RATE.format(-0.00001, sign=True) == "0.0"
    assert RATE.format(math.nan) == RATE.format(None) == "–"


def test_values_are_formatted_with_their_unit():
    assert RATE.format_with_unit(0.5) == "50.0\u00a0%"
    assert COUNT.format_with_unit(2) == "2.0"


def test_every_metric_is_computed():
    counts = [miniworld.count_caption(scene("test", 0), "There is a cup.")]
    assert list(miniworld.summarise(counts)) == [metric.name for metric in TRUTH]
    row = {"text": "A cup.", "sentences": [{"text": "A cup.", "score": 0.3}], "score": 0.3, "finish": "stop"}
    assert list(labelfree.summarise([row], 0.2)) == [metric.name for metric in LABEL_FREE]

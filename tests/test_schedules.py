"""The learning-rate schedule."""

from itertools import pairwise

import pytest

from jsfree.schedules import warmup_cosine


def test_the_factor_rises_linearly_and_falls_to_zero():
    factors = [warmup_cosine(step, total=100, warmup=10) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))

"""Streaming reductions of large tables."""

import random
import tracemalloc

import numpy as np

from jsfree.report.reading import EvenSample, SampleIds
from jsfree.report.scenes import SCENES, SceneChooser, choose


def test_an_even_sample_of_few_and_many_numbers():
    numbers = np.arange(10_000, dtype=np.float64)
    for limit, stride in ((10_000, 1), (5_000, 2), (4_999, 4), (100, 128)):
        sample = EvenSample(limit)
        for part in np.split(numbers, np.sort(random.Random(limit).choices(range(10_000), k=30))):
            sample.add(part)
        assert sample.values.tolist() == numbers[::stride].tolist()


def test_membership_of_sample_ids():
    ids = SampleIds(f"é{number}" for number in range(0, 10_000, 2))
    assert [f"é{number}" in ids for number in range(10_000)] == [True, False] * 5_000
    assert "" not in SampleIds([])


def test_choosing_scenes_takes_bounded_memory():
    outcomes = {f"a{number}": "rare" if number % 1000 == 7 else "common" for number in range(30_000)}
    chooser = SceneChooser()
    tracemalloc.start()
    for number, (sample_id, outcome) in enumerate(outcomes.items()):
        chooser.add(sample_id, outcome)
        if number == 1_000:
            before = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    choice = chooser.choice(("rare", "common"))
    assert choice == choose(outcomes, ("rare", "common"))
    assert len(choice.shown) == SCENES

"""Tables of any size become a few numbers a row."""

import random
import tracemalloc

import numpy as np

from jsfree.report.reading import SampleIds, Thinned
from jsfree.report.scenes import SCENES, Chooser, choose


def test_few_numbers_are_all_kept_and_many_are_evenly_thinned():
    numbers = np.arange(10_000, dtype=np.float64)
    for limit, stride in ((10_000, 1), (5_000, 2), (4_999, 4), (100, 128)):
        thinned = Thinned(limit)
        for part in np.split(numbers, np.sort(random.Random(limit).choices(range(10_000), k=30))):
            thinned.add(part)
        assert thinned.values.tolist() == numbers[::stride].tolist()


def test_ids_are_found_and_others_are_not():
    ids = SampleIds(f"é{number}" for number in range(0, 10_000, 2))
    assert [f"é{number}" in ids for number in range(10_000)] == [True, False] * 5_000
    assert "" not in SampleIds([])


def test_scenes_are_chosen_as_they_come_by_in_memory_that_does_not_grow():
    outcomes = {f"a{number}": "rare" if number % 1000 == 7 else "common" for number in range(30_000)}
    chooser = Chooser()
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

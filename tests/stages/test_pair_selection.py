"""Labels depend on the scores and splits on the gaps, and neither depends on the order of the input."""

import math
import random

import pytest

from jsfree.config import Select
from jsfree.errors import StageError
from jsfree.schemas import SELECTED
from jsfree.stages.pair_selection import select_pairs

ALL = {"splits": 1, "first": 1, "last": 1}


def caption(text, score, finish="stop"):
    sentences = [{"text": text, "score": score}]
    return {
        "ratio": 0.0,
        "text": text,
        "token_ids": [1, 2],
        "finish": finish,
        "sentences": sentences,
        "score": score,
    }


def pair(name, low, high, texts=("low caption", "high caption"), finish=("stop", "stop")):
    image = {"id": name, "uri": f"/{name}.png", "bytes": None, "sha256": None}
    return {
        "sample_id": name,
        "image": image,
        "prompt": "Describe.",
        "low": caption(texts[0], low, finish[0]),
        "high": caption(texts[1], high, finish[1]),
        "seed": 0,
        "inverted": low < high,
        "gap": abs(low - high),
    }


def names(selection):
    return [row["sample_id"] for row in selection.rows]


@pytest.fixture
def twenty():
    """Pairs p00 to p19 with gaps rising from 0.00 to 0.19, every third one inverted."""
    return [pair(f"p{n:02}", 0.5, 0.5 + n / 100 * (1 if n % 3 == 0 else -1)) for n in range(20)]


def test_an_inverted_pair_is_swapped():
    rows = select_pairs([pair("good", 0.4, 0.1), pair("bad", 0.1, 0.2)], Select(**ALL), 0).rows
    assert [(row["sample_id"], row["chosen"]["text"], row["rejected"]["text"]) for row in rows] == [
        ("bad", "high caption", "low caption"),
        ("good", "low caption", "high caption"),
    ]
    assert [row["gap"] for row in rows] == pytest.approx([0.1, 0.3])
    assert [row["inverted"] for row in rows] == [True, False]


def test_a_tie_is_not_swapped():
    selection = select_pairs([pair("tie", 0.3, 0.3)], Select(**ALL), 0)
    assert selection.rows[0]["chosen"]["text"] == "low caption"
    assert selection.facts["tied"] == 1


def test_inverted_pairs_can_be_dropped_or_kept():
    scored = [pair("good", 0.4, 0.1), pair("bad", 0.1, 0.2)]
    dropped = select_pairs(scored, Select(inverted="drop", **ALL), 0)
    assert names(dropped) == ["good"]
    assert dropped.facts["dropped_inverted"] == 1
    kept = select_pairs(scored, Select(inverted="keep", **ALL), 0)
    assert [(row["sample_id"], row["chosen"]["text"]) for row in kept.rows] == [
        ("bad", "low caption"),
        ("good", "low caption"),
    ]
    assert [row["gap"] for row in kept.rows] == pytest.approx([-0.1, 0.3])


def test_a_random_order_is_that_of_neither_scores_nor_ratios_and_keeps_the_same_pairs():
    scored = [pair(f"p{n:03}", 0.5, 0.5 + n / 1000 * (1 if n % 3 == 0 else -1)) for n in range(1, 401)]
    settings = {"splits": 4, "first": 2, "last": 4, "max_pairs": 200}
    swapped = select_pairs(scored, Select(inverted="swap", **settings), 0)
    drawn = select_pairs(scored, Select(inverted="random", **settings), 0)
    assert names(drawn) == names(swapped)
    assert drawn.facts == swapped.facts
    assert [row["gap"] for row in drawn.rows] == [row["gap"] for row in swapped.rows]
    for better in (lambda row: row["chosen"]["score"] > row["rejected"]["score"],
                   lambda row: row["chosen"]["text"] == "low caption"):  # fmt: skip
        assert 70 < sum(map(better, drawn.rows)) < 130  # 4 standard deviations of 200 fair coins


def test_a_random_order_depends_on_the_seed_and_the_pair_only(twenty):
    settings = Select(inverted="random", **ALL)
    order = {row["sample_id"]: row["chosen"]["text"] for row in select_pairs(twenty, settings, 0).rows}
    part = {row["sample_id"]: row["chosen"]["text"] for row in select_pairs(twenty[::-1][:7], settings, 0).rows}
    assert part.items() <= order.items()
    assert {row["sample_id"]: row["chosen"]["text"] for row in select_pairs(twenty, settings, 1).rows} != order


def test_identical_and_truncated_captions_are_dropped_and_counted():
    scored = [
        pair("same", 0.2, 0.2, texts=("x", "x"), finish=("length", "length")),
        pair("cut", 0.2, 0.1, finish=("stop", "length")),
        pair("fine", 0.2, 0.1),
    ]
    selection = select_pairs(scored, Select(**ALL), 0)
    assert names(selection) == ["fine"]
    facts = selection.facts
    assert (facts["pairs"], facts["identical"], facts["truncated"], facts["kept"]) == (3, 1, 1, 1)
    assert names(select_pairs(scored, Select(keep_truncated=True, **ALL), 0)) == ["cut", "fine"]


def test_the_selected_splits_are_sorted_by_gap(twenty):
    selection = select_pairs(twenty, Select(splits=5, first=2, last=3), 0)
    assert names(selection) == [f"p{n:02}" for n in range(4, 12)]
    assert [row["rank"] for row in selection.rows] == list(range(4, 12))
    assert [row["split"] for row in selection.rows] == [2] * 4 + [3] * 4
    assert selection.facts["inverted"] == 6
    assert selection.facts["inverted_share"] == pytest.approx(0.3)
    second = selection.facts["splits"][1]
    assert (second["split"], second["pairs"]) == (2, 4)
    assert (second["low_gap"], second["high_gap"], second["mean_gap"]) == pytest.approx((0.04, 0.07, 0.055))


def test_split_sizes_differ_by_at_most_one_pair(twenty):
    sizes = [split["pairs"] for split in select_pairs(twenty[:17], Select(), 0).facts["splits"]]
    assert sum(sizes) == 17
    assert max(sizes) - min(sizes) == 1


def test_the_order_of_the_input_does_not_matter(twenty):
    shuffled = random.Random(1).sample(twenty, len(twenty))
    for settings in (Select(splits=4, first=1, last=3), Select(max_pairs=3, **ALL)):
        assert select_pairs(twenty, settings, 7) == select_pairs(shuffled, settings, 7)


def test_max_pairs_draws_a_sample_by_seed(twenty):
    drawn = {seed: names(select_pairs(twenty, Select(max_pairs=6, **ALL), seed)) for seed in range(3)}
    assert all(len(chosen) == 6 and chosen == sorted(chosen) for chosen in drawn.values())
    assert drawn[0] != drawn[1]
    fewer = names(select_pairs([p for p in twenty if p["sample_id"] != drawn[0][0]], Select(max_pairs=6, **ALL), 0))
    assert set(drawn[0][1:]) <= set(fewer)


def test_input_rows_are_not_changed(twenty):
    before = [dict(row) for row in twenty]
    select_pairs(twenty, Select(inverted="keep"), 0)
    assert twenty == before


def test_rows_match_the_schema(twenty):
    import pyarrow as pa

    rows = select_pairs(twenty, Select(), 0).rows
    assert pa.Table.from_pylist(rows, SELECTED).to_pylist() == rows


def test_the_error_for_an_empty_selection_explains_why_pairs_were_dropped():
    scored = [pair("same", 0.2, 0.2, texts=("x", "x")), pair("cut", 0.2, 0.1, finish=("length", "stop"))]
    with pytest.raises(
        StageError, match=r"of 2 pairs, 1 have identical captions, 1 have a truncated caption.*keep_truncated"
    ):
        select_pairs(scored, Select(), 0)
    with pytest.raises(StageError, match="of 0 pairs"):
        select_pairs([], Select(), 0)


def said(*sentences):
    return {**caption(" ".join(sentences), 0.5), "sentences": [{"text": s, "score": 0.5} for s in sentences]}


def test_pairs_whose_winner_repeats_more_sentences_can_be_dropped():
    """A pair is kept if the loser repeats as many sentences or more."""
    once, twice = said("There is a cup.", "A dog."), said("There is a cup.", "there is  a cup!", "A dog.")
    captions = {
        "winner": (twice, once),
        "loser": (once, twice),
        "both": (twice, said("A cat.", "A cat.")),
        "no": (once, said("A cat.")),
    }
    pairs = [{**pair(name, 0.6, 0.4), "low": low, "high": high} for name, (low, high) in captions.items()]
    dropped = select_pairs(pairs, Select(**ALL, repeating="drop"), seed=0)
    assert dropped.facts["repeating"] == 1
    assert {row["sample_id"] for row in dropped.rows} == captions.keys() - {"winner"}
    assert {row["sample_id"] for row in select_pairs(pairs, Select(**ALL), seed=0).rows} == captions.keys()


def test_repetition_is_checked_after_swapping_inverted_pairs():
    """The chosen caption is checked, not the provisional winner."""
    once, twice = said("A cup."), said("A cup.", "A cup.")
    inverted = {**pair("inverted", 0.4, 0.6), "low": {**once, "score": 0.4}, "high": {**twice, "score": 0.6}}
    kept = select_pairs([inverted, pair("other", 0.6, 0.4)], Select(**ALL, repeating="drop"), seed=0)
    assert [row["sample_id"] for row in kept.rows] == ["other"]


def twice(name, first, second, **rest):
    """A pair with (low, high) scores of two scorers."""
    low, high = ({"sentences": [], "score": score} for score in second)
    inverted = first[0] < first[1] and second[0] < second[1]
    return {**pair(name, *first, **rest), "second_low": low, "second_high": high, "inverted": inverted}


@pytest.fixture
def judged_twice():
    return [
        twice("both confirm", (0.4, 0.1), (0.06, 0.05)),
        twice("both invert", (0.1, 0.2), (0.03, 0.05)),
        twice("first inverts", (0.1, 0.2), (0.05, 0.03)),
        twice("second inverts", (0.2, 0.1), (0.03, 0.05)),
        twice("first ties", (0.2, 0.2), (0.05, 0.04)),
        twice("same", (0.2, 0.3), (0.5, 0.1), texts=("x", "x")),
    ]


def test_a_pair_is_swapped_if_both_scorers_say_so_and_dropped_if_they_disagree(judged_twice):
    selection = select_pairs(judged_twice, Select(**ALL), 0)
    chosen = {row["sample_id"]: row["chosen"]["text"] for row in selection.rows}
    assert chosen == {
        "both confirm": "low caption",
        "both invert": "high caption",
        "first ties": "low caption",
    }
    assert (selection.facts["disagreed"], selection.facts["dropped_inverted"], selection.facts["kept"]) == (2, 0, 3)
    agreement = selection.facts["agreement"]
    assert {key: agreement[key] for key in ("pairs", "both_inverted", "first_inverted", "second_inverted")} == {
        "pairs": 5,
        "both_inverted": 1,
        "first_inverted": 1,
        "second_inverted": 1,
    }
    assert agreement["share"] == pytest.approx(0.6)


def test_the_rules_for_inverted_pairs_apply_to_those_that_both_invert(judged_twice):
    dropped = select_pairs(judged_twice, Select(inverted="drop", **ALL), 0)
    assert sorted(names(dropped)) == ["both confirm", "first ties"]
    assert (dropped.facts["dropped_inverted"], dropped.facts["disagreed"]) == (1, 2)
    kept = select_pairs(judged_twice, Select(inverted="keep", **ALL), 0)
    assert {row["chosen"]["text"] for row in kept.rows} == {"low caption"}
    assert (len(kept.rows), kept.facts["disagreed"]) == (5, 0)


def test_both_scorers_decide_about_the_splits_whatever_their_scales(judged_twice):
    """The second scorer's differences are a tenth of the first's, and count as much."""
    scored = [twice(f"p{n}", (0.5, 0.5 - n / 10), (0.05, 0.05 - (9 - n) ** 2 / 100)) for n in range(1, 9)]
    spreads = [
        math.sqrt(sum((n / 10) ** 2 for n in range(1, 9)) / 8),
        math.sqrt(sum(((9 - n) ** 2 / 100) ** 2 for n in range(1, 9)) / 8),
    ]
    gaps = {f"p{n}": (n / 10 / spreads[0] + (9 - n) ** 2 / 100 / spreads[1]) / 2 for n in range(1, 9)}
    selection = select_pairs(scored, Select(splits=2, first=1, last=1), 0)
    assert names(selection) == sorted(gaps, key=gaps.__getitem__)[:4]
    assert {row["sample_id"]: row["gap"] for row in selection.rows} == pytest.approx(
        {name: gaps[name] for name in names(selection)}
    )
    larger = [{**each, "second_low": {"sentences": [], "score": 1.0},
               "second_high": {"sentences": [], "score": 1 - 50 * (0.05 - each["second_high"]["score"])}}
              for each in scored]  # fmt: skip
    assert names(select_pairs(larger, Select(splits=2, first=1, last=1), 0)) == names(selection)


def test_disagreement_is_named_if_no_pair_remains():
    with pytest.raises(StageError, match="the scorers disagree about 1,"):
        select_pairs([twice("first inverts", (0.1, 0.2), (0.05, 0.03))], Select(**ALL), 0)

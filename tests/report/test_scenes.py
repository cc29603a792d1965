"""Selection of scenes, and highlighting in captions."""

from collections import Counter

import numpy as np

from jsfree.config import Select
from jsfree.report import scenes
from jsfree.report.reading import Caption, PairSummary, Position


def test_outcomes_alternate_regardless_of_the_input_order():
    outcomes = {f"a{index}": "common" for index in range(100)} | {"b1": "rare", "b2": "rare", "c": "unlisted"}
    choice = scenes.choose(outcomes, ("rare", "common", "never"))
    assert Counter(outcome for _, outcome in choice.shown) == {"common": 9, "rare": 2, "unlisted": 1}
    assert choice == scenes.choose(dict(reversed(outcomes.items())), ("rare", "common", "never"))
    assert sum(kind.share for kind in choice.outcomes) == 1


def test_all_scenes_are_shown_if_there_are_few():
    assert len(scenes.choose({"a": "x", "b": "y"}, ("x",)).shown) == 2


def test_pairs_have_the_expected_outcomes():
    def outcome(select=None, splits=None, **changes):
        values = {"gap": 2.0, "inverted": False, "identical": False, "truncated": False, **changes}
        return scenes.pair_outcome(
            PairSummary("a", Position(0, 0), **values), splits or {}, (1.0, 3.0), select or Select()
        )

    assert outcome(splits={"a": 4}) == "kept, order confirmed"
    assert outcome(splits={"a": 4}, inverted=True) == "kept, order inverted"
    assert outcome(gap=0.5) == "left out, gap too small"
    assert outcome(gap=3.5) == "left out, gap too large"
    assert outcome(identical=True) == "left out, identical captions"
    assert outcome(truncated=True) == "left out, cut at the length limit"
    assert outcome(inverted=True, select=Select(inverted="drop")) == "left out, order inverted"
    assert outcome() == "left out, not drawn"


def test_a_marked_caption_keeps_its_text():
    text = "This is a kitchen. There is a red cow, and Cows! No cup."
    scene = {"sample_id": "miniworld-test-000000@x", "text": text}
    pieces = scenes.absent_marked(Caption(scene, Position(0, 0)))
    assert "".join(piece.text for piece in pieces) == text


def test_shades_increase_with_the_cosine():
    edges = scenes.shade_edges(np.linspace(0, 1, 101))
    pieces = scenes.shaded(
        [{"text": "a", "score": 0.05}, {"text": "b", "score": 0.5}, {"text": "c", "score": 1.0}], edges
    )
    assert [piece.shade for piece in pieces] == [1, 3, 5]
    assert [piece.label for piece in pieces] == ["5.0", "50.0", "100.0"]


def test_shades_do_not_depend_on_the_scale_of_the_scorer():
    """SigLIP's cosines are smaller than CLIP's and begin elsewhere."""
    cosines = np.random.default_rng(0).normal(0.25, 0.03, 500)
    classes = []
    for scores in (cosines, 0.3 * cosines + 0.02):
        sentences = [{"text": "A cup.", "score": float(score)} for score in scores]
        classes.append([piece.shade for piece in scenes.shaded(sentences, scenes.shade_edges(scores))])
    assert classes[0] == classes[1]
    assert Counter(classes[0]) == dict.fromkeys(range(1, 6), 100)

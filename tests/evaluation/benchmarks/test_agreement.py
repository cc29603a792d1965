import pytest

from jsfree.evaluation.benchmarks.agreement import judge_agreement
from jsfree.evaluation.benchmarks.base import Measured


def ic(number, precision, said):
    claims = {"said": [{"element": "x", "shown": flag} for flag in said], "seen": []}
    return {"question_id": str(number), "precision": {"score": precision, "analysis": ""}, "claims": claims}


def test_two_judges_are_compared_on_the_answers_that_both_scored():
    first = Measured([], [ic(1, 5, [True, False]), ic(2, 7, [True]), ic(3, 9, [False]), ic(4, None, [])])
    second = Measured([], [ic(1, 5, [True, False]), ic(2, 7, [True]), ic(5, 1, [True]), ic(4, 3, [True])])
    found = judge_agreement(first, second)
    assert found["ic_precision"] == {
        "answers": 2,
        "kappa": 1.0,
        "pearson": pytest.approx(1),
        "spearman": pytest.approx(1),
    }
    assert found["claim_precision"]["answers"] == 2
    assert "kappa" not in found["claim_precision"]
    assert "ic_recall" not in found


def test_opposite_ratings_disagree():
    first, second = (
        Measured([], [{"question_id": str(number), "rating": rating} for number, rating in enumerate(ratings)])
        for ratings in ([0, 2, 4, 6], [6, 4, 2, 0])
    )
    assert judge_agreement(first, second)["rating"]["kappa"] == pytest.approx(-1)
    assert judge_agreement(first, second)["rating"]["pearson"] == pytest.approx(-1)

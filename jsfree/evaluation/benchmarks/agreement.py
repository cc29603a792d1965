"""Agreement of two judges that scored the same answers in a suite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jsfree.evaluation.benchmarks.base import Measured
from jsfree.judge.agreement import cohen_kappa, pearson, spearman


def judge_agreement(first: Measured, second: Measured) -> dict[str, dict[str, float | None]]:
    """How two judges agree, by the name of what they score.

    Each entry has the number of answers that both scored, Cohen's kappa (quadratic weights; for whole-number scores),
    and Pearson's and Spearman's correlations. Undefined values are None.
    """
    scores = [{detail["question_id"]: _scores(detail) for detail in each.details} for each in (first, second)]
    names = dict.fromkeys(name for found in scores[0].values() for name in found)
    compared = {}
    for name in names:
        pairs = [
            (found[name], scores[1][question][name])
            for question, found in scores[0].items()
            if name in found and name in scores[1].get(question, {})
        ]
        if pairs:
            compared[name] = _agreement([one for one, _ in pairs], [other for _, other in pairs])
    return compared


def with_second_judge(first: Measured, second: Measured) -> Measured:
    """The measurement by the first judge, whose record tells the second judge and how they agree."""
    judges = {**(first.judge or {}), "second": second.judge, "agreement": judge_agreement(first, second)}
    return replace(first, judge=judges, errors=[*first.errors, *second.errors])


def _agreement(first: list[float], second: list[float]) -> dict[str, float | None]:
    figures: dict[str, float] = {"answers": len(first)}
    if all(float(value).is_integer() for value in (*first, *second)):
        figures["kappa"] = cohen_kappa(first, second, "quadratic")
    figures |= {"pearson": pearson(first, second), "spearman": spearman(first, second)}
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _scores(detail: Mapping[str, Any]) -> dict[str, float]:
    """What a judge scored in one answer: MMHal's rating, IC's scores, and the shares of IC's claims."""
    found: dict[str, float | None] = {"rating": detail.get("rating")}
    for aspect in ("precision", "recall"):
        found[f"ic_{aspect}"] = detail.get(aspect, {}).get("score")
    for name, key, flag in (("claim_precision", "said", "shown"), ("claim_recall", "seen", "stated")):
        elements = detail.get("claims", {}).get(key, [])
        found[name] = sum(each[flag] for each in elements) / len(elements) if elements else None
    return {name: float(value) for name, value in found.items() if value is not None}

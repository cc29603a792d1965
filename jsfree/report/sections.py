"""Sections of the page: selection and training of each round, and the cost of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jsfree.config import RunConfig
from jsfree.dpo.loss import initial_loss
from jsfree.evaluation.metrics import MISSING
from jsfree.report import coverage, figures, reading, tables
from jsfree.report.coverage import CoverageView
from jsfree.report.figures import Series
from jsfree.report.reading import Scored, StageCost
from jsfree.run.run import Run
from jsfree.run.stages import part_of


@dataclass(frozen=True)
class SplitLine:
    """A line of the table of splits, formatted."""

    number: int
    pairs: str
    low: str
    high: str
    mean: str
    kept: bool


@dataclass(frozen=True)
class AgreementView:
    """Agreement of two scorers about the order of pairs, formatted."""

    pairs: str
    share: str
    kappa: str
    both: str
    first: str
    second: str
    dropped: str

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> AgreementView | None:
        """The agreement in the facts of a selection; None if there was one scorer."""
        found = facts.get("agreement")
        if found is None:
            return None
        kappa = MISSING if found["kappa"] is None else f"{found['kappa']:.2f}".replace("-", "−")
        share = MISSING if found["share"] is None else tables.percent(found["share"])
        counts = (found["both_inverted"], found["first_inverted"], found["second_inverted"], facts["disagreed"])
        return cls(tables.whole(found["pairs"]), share, kappa, *map(tables.whole, counts))


@dataclass(frozen=True)
class RoundView:
    """Selection and training of one round.

    ``kept`` is the range of gaps trained on; ``coverage`` describes the selection of strategy ``coverage``, which has
    no ``histogram``; ``agreement`` describes that of two scorers.
    """

    number: int
    facts: dict[str, Any]
    histogram: Markup | None
    splits: list[SplitLine]
    curves: list[Markup]
    steps: int
    training_note: str
    kept: tuple[float, float] | None
    coverage: CoverageView | None
    agreement: AgreementView | None


@dataclass(frozen=True)
class CostLine:
    """A finished stage and its cost, formatted; ``share`` is its part of all device time."""

    round: int
    stage: str
    does: str
    rows: list[str]
    failed: bool
    seconds: str
    device: str
    tokens: str
    share: float


@dataclass(frozen=True)
class CostView:
    """The cost of a run; ``verification`` and ``verification_loop`` are shares of device time or None."""

    lines: list[CostLine]
    figure: Markup
    seconds: str
    device: str
    tokens: str
    verification: float | None
    verification_loop: float | None
    verification_time: str


def round_view(run: Run, number: int, scored: Scored) -> RoundView:
    """Selection and training of round ``number``, as far as they are done."""
    manifest = run.manifest(number, "selected")
    facts = manifest.facts if manifest else {}
    splits = [(split, _is_kept(split, run)) for split in facts.get("splits", [])]
    kept = _range([split for split, is_kept in splits if is_kept])
    steps = reading.training_log(run, number)
    by_coverage = run.config.select.strategy == "coverage"
    gap = coverage.gap if by_coverage else _gap if run.config.clip.second is None else _joint_gap
    return RoundView(
        number,
        facts,
        None if by_coverage else _histogram(run, scored, kept),
        [_split_line(split, is_kept, gap) for split, is_kept in splits],
        _curves(steps, run.config),
        len(steps),
        _training_note(number, run.config),
        kept,
        CoverageView.of(number, facts, run.config.score.score_name) if by_coverage and facts else None,
        AgreementView.of(facts),
    )


def cost_view(costs: Sequence[StageCost]) -> CostView:
    """The cost of all finished stages; the loop is everything but evaluation."""
    device = sum(cost.manifest.device_seconds for cost in costs)
    by_stage: dict[str, float] = {}
    for cost in costs:
        base = "evaluation" if _is_evaluation(cost) else cost.stage
        by_stage[base] = by_stage.get(base, 0.0) + cost.manifest.device_seconds
    scored, loop = by_stage.get("scored", 0.0), device - by_stage.get("evaluation", 0.0)
    parts = [(name, seconds, "part-" + name) for name, seconds in by_stage.items() if seconds > 0]
    return CostView(
        [_cost_line(cost, device) for cost in costs],
        figures.shares_bar(parts) if parts else Markup(""),
        tables.duration(sum(cost.manifest.seconds for cost in costs)),
        tables.duration(device),
        tables.whole(sum(cost.manifest.tokens for cost in costs)),
        scored / device if device else None,
        scored / loop if loop > 0 else None,
        tables.duration(scored),
    )


def _histogram(run: Run, scored: Scored, kept: tuple[float, float] | None) -> Markup | None:
    """The gaps of all pairs that selection sorts: no identical captions, and no truncated ones unless they are kept."""
    select = run.config.select
    usable = ~scored.identical & (~scored.truncated | select.keep_truncated)
    if select.inverted != "keep":
        usable &= ~scored.disagreed
    if not usable.any():
        return None
    gaps, inverted = scored.gaps[usable], scored.inverted[usable]
    is_joint = run.config.clip.second is not None
    scale, unit = (
        (1.0, "in units of the scorers’ spreads") if is_joint else (100.0, f"{run.config.score.score_name} × 100")
    )
    signed = scale * np.where(inverted & (select.inverted == "keep"), -gaps, gaps)
    shown = (scale * kept[0], scale * kept[1]) if kept else None
    return figures.gap_histogram(signed, inverted, shown, unit)


def _is_kept(split: Mapping[str, Any], run: Run) -> bool:
    select = run.config.select
    return bool(split.get("kept", select.first <= split["split"] <= select.last))


def _range(splits: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Lowest and highest gap of ``splits``; None when all of them are empty."""
    filled = [split for split in splits if split.get("low_gap") is not None]
    return (min(s["low_gap"] for s in filled), max(s["high_gap"] for s in filled)) if filled else None


def _split_line(split: Mapping[str, Any], kept: bool, form: Callable[[float | None], str]) -> SplitLine:
    low, high, mean = (form(split.get(name)) for name in ("low_gap", "high_gap", "mean_gap"))
    return SplitLine(split["split"], tables.whole(split["pairs"]), low, high, mean, kept)


def _gap(gap: float | None) -> str:
    """A difference of mean sentence scores, × 100."""
    return MISSING if gap is None else f"{100 * gap:.2f}".replace("-", "−")


def _joint_gap(gap: float | None) -> str:
    """A gap by two scorers, in units of their spreads."""
    return MISSING if gap is None else f"{gap:.2f}".replace("-", "−")


def _curves(steps: Sequence[Mapping[str, Any]], config: RunConfig) -> list[Markup]:
    """The panels of a training: those of preferences unless the NLL is the whole loss, and that of the NLL if any."""
    if not steps:
        return []
    train = config.train
    at = [float(step["step"]) for step in steps]

    def series(key: str, name: str = "", kind: str = "after") -> Series:
        return Series(name or key, [step.get(key) for step in steps], kind)

    held_out = any("validation_loss" in step for step in steps)
    losses = [series("loss"), *([series("validation_loss", "held out", "before")] if held_out else [])]
    norm = figures.curve("Gradient norm", at, [series("grad_norm", "norm")])
    nll = figures.curve(f"NLL per token, {_nll_caption(config)}s", at, [series("nll", "NLL")])
    if train.objective == "nll":
        return [figures.curve("Loss", at, losses), nll, norm]
    both = ("chosen", "rejected")
    rewards = [series(f"{role}_reward", role, kind) for role, kind in zip(both, ("after", "before"), strict=True)]
    logps = [series(f"{role}_logp", role, kind) for role, kind in zip(both, ("after", "before"), strict=True)]
    start = (initial_loss(train.beta, train.loss), "ln 2" if train.loss == "sigmoid" else "equal models")
    return [
        figures.curve("Loss", at, losses, start),
        figures.curve("Implicit rewards", at, rewards, (0.0, "")),
        figures.curve("Accuracy (chosen above rejected)", at, [series("accuracy")], (0.5, "chance")),
        figures.curve("Reward margin", at, [series("margin")], (0.0, "")),
        norm,
        figures.curve("Log-probability", at, logps),
        *([nll] if any("nll" in step for step in steps) else []),
    ]


def _training_note(number: int, config: RunConfig) -> str:
    """What the loss of a round is and where it begins."""
    train = config.train
    caption = _nll_caption(config)
    if train.objective == "nll":
        return f"The loss is {train.sft_weight:g} × the NLL per token of the {caption}; there is no reference model."
    note = ""
    if number > 1 and train.reference == "seed":
        begin = f"the policy begins as m{number - 1}"
        note = f"The reference is m0, {begin}: the dashed lines are the values for equal models."
    elif train.objective == "dpo+nll" or not train.sft_weight:
        note = "Policy and reference are equal at the start, so the loss begins at the dashed line."
    if train.objective == "dpo+nll":
        note += f" The NLL per token of the {caption}, times {train.sft_weight:g}, is added to the loss shown."
    return note


def _nll_caption(config: RunConfig) -> str:
    return "composed caption" if config.nll_caption == "target" else "chosen caption"


def _cost_line(cost: StageCost, device: float) -> CostLine:
    manifest, part = cost.manifest, part_of(cost.stage)
    return CostLine(
        cost.round,
        cost.stage,
        (part.label if part else "") + (", taken from another run" if manifest.reused_from else ""),
        [tables.whole(rows) for rows in (manifest.rows_in, manifest.rows_out, manifest.rows_failed)],
        manifest.rows_failed > 0,
        tables.duration(manifest.seconds),
        tables.duration(manifest.device_seconds),
        tables.whole(manifest.tokens) if manifest.tokens else MISSING,
        manifest.device_seconds / device if device else 0.0,
    )


def _is_evaluation(cost: StageCost) -> bool:
    part = part_of(cost.stage)
    return part is not None and part.stage == "evaluate"

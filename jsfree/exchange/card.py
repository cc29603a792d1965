"""The statistics of an exported data set, and its card for the Hugging Face hub."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import jsfree
from jsfree.config import RunConfig
from jsfree.exchange.composition import composition
from jsfree.run.run import Run
from jsfree.schemas import SelectedPair

BINS = 10
BAR = 40
SIZES = (1_000, 10_000, 100_000, 1_000_000)
STAGES = ("samples", "pairs", "scored")


@dataclass
class Tally:
    """Gaps and known ratios of the exported pairs, and the number of pairs left out.

    ``edited`` counts the pairs whose rejected caption is an edit of the chosen one.
    """

    gaps: array[float] = field(default_factory=lambda: array("d"))
    low: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    inverted: int = 0
    edited: int = 0
    left_out: int = 0
    first: str = ""
    """Why the first pair was left out."""

    @property
    def pairs(self) -> int:
        """Number of exported pairs."""
        return len(self.gaps)

    def add(self, pair: SelectedPair) -> None:
        """Count an exported pair."""
        self.gaps.append(pair["gap"])
        for ratios, caption in ((self.low, pair["low"]), (self.high, pair["high"])):
            if caption["ratio"] is not None:
                ratios.append(caption["ratio"])
        self.inverted += pair["inverted"]
        self.edited += composition(pair).get("provenance", {"edit": "none"})["edit"] != "none"

    def leave_out(self, reason: str) -> None:
        """Count a pair that cannot be exported."""
        self.left_out += 1
        self.first = self.first or reason


def is_composed(run: Run, pairs: str) -> bool:
    """Whether the ``pairs`` were formed from verified sentences: the selected ones of strategy ``coverage``."""
    return pairs == "selected" and run.config.select.strategy == "coverage"


def figures(run: Run, number: int, pairs: str, tally: Tally) -> dict[str, Any]:
    """Counts of a round's stages, and distributions over the exported pairs.

    Gaps are of mean sentence scores × 100; if ``strategy`` is ``coverage``, they are differences of coverage
    (``stages.composition``), and ``edited`` of the exported pairs have an edit of the chosen caption as the rejected
    one. Gaps of selected pairs with two ``scorers`` are in units of their spreads (``stages.agreement``).
    ``inverted_share`` is of the exported pairs, ``scored_inverted_share`` of all scored ones. Figures of stages
    that are not done are None.
    """
    done = {name: manifest for name in (*STAGES, "selected") if (manifest := run.manifest(number, name))}
    chosen = done["selected"].facts if "selected" in done else {}
    composed = is_composed(run, pairs)
    dropped = {} if composed else chosen  # coverage does not drop pairs for these reasons
    scorers = len(run.config.clip.scorers)
    is_cosine = not composed and (scorers == 1 or pairs == "scored")
    gaps = array("d", (100 * gap for gap in tally.gaps)) if is_cosine else tally.gaps
    return {
        "round": number,
        "pairs": pairs,
        "strategy": "coverage" if composed else "gap",
        "judge": run.config.score.judge_name,
        "score": run.config.score.score_name,
        "scorers": scorers,
        "exported": tally.pairs,
        "left_out": tally.left_out,
        "generated": done["pairs"].rows_out if "pairs" in done else None,
        "excluded": done["pairs"].facts.get("excluded", 0) if "pairs" in done else None,
        "failed": sum(done[name].rows_failed for name in STAGES if name in done),
        "scored": done["scored"].rows_out if "scored" in done else None,
        "identical": dropped.get("identical"),
        "truncated": dropped.get("truncated"),
        "dropped_inverted": dropped.get("dropped_inverted"),
        "disagreed": dropped.get("disagreed"),
        "repeating": dropped.get("repeating"),
        "unformed": chosen.get("unformed"),
        "without_likelihood": chosen.get("without_likelihood"),
        "edited": tally.edited if composed else None,
        "selected": chosen.get("kept"),
        "scored_inverted_share": chosen.get("inverted_share"),
        "inverted_share": tally.inverted / tally.pairs,
        "ratios": {"low": _spread(tally.low), "high": _spread(tally.high)},
        "gap": _spread(gaps),
        "gaps": histogram(gaps),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, minimum and maximum; None if there are no values."""
    return {"mean": fmean(values), "min": min(values), "max": max(values)} if values else None


def histogram(values: Sequence[float]) -> list[dict[str, Any]]:
    """Counts of values in ``BINS`` equal bins from the minimum to the maximum; the last bin is closed."""
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    edges = [low + width * index for index in range(BINS + 1)]
    return [{"from": edges[at], "to": edges[at + 1], "pairs": count} for at, count in enumerate(counts)]


def card(run: Run, statistics: dict[str, Any], files: str, features: Sequence[dict[str, Any]]) -> str:
    """The ``README.md`` of the data set: front matter, then Markdown."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license="unknown",
        task_categories=["image-text-to-text"],
        tags=["preference", "dpo", "image-captioning", "jsfree"],
        size_categories=[_size(statistics["exported"])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
        # Copied through JSON: YAML would write repeated parts as references, which datasets cannot read.
        dataset_info={"features": json.loads(json.dumps(features))} if features else None,
    )
    parts = [_origin(run, statistics), _counts(statistics), _ratios(statistics), _gaps(statistics), LICENCE]
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Preference pairs of image captions\n\n"
        + "\n\n".join(part.strip() for part in parts)
        + "\n"
    )


LICENCE = """
## Licence

The licence above is not filled in. It follows from the licences of the images, of the captioner and of CLIP: look
them up and state it before you publish this data set.
"""


def _origin(run: Run, statistics: dict[str, Any]) -> str:
    config = run.config
    if config.imported is not None:
        origin = f"The pairs were imported ({config.imported.format}: `{config.imported.path}`)."
        prompt = "Each pair has its own prompt."
    else:
        origin = (
            "The captioner generated two captions of every image by dual-path decoding (arXiv 2411.17760): each token"
            " is drawn from a mixture of the distributions with and without the image, by the hallucination ratio."
        )
        prompt = f"Prompt: `{config.prompt}`"
    formed = _composed(config, statistics) if statistics["composed"] else _ordered(config)
    clip = "`, `".join(scorer.label for scorer in config.clip.scorers)
    improved = f", improved in {statistics['round'] - 1} rounds" if statistics["round"] > 1 else ""
    return f"""
{statistics["exported"]:,} pairs, format `{statistics["format"]}`, images: {statistics["images"]}.

## How it was made

{origin} {formed} The rows are the {statistics["pairs"]} pairs of round {statistics["round"]};
`provenance.jsonl` has the ratio, score and gap of each, in the same order.

| | |
|---|---|
| captioner | `{config.captioner.versioned_ref}`{improved} |
| CLIP | `{clip}` |
| judge of sentences | {config.score.judge_name} |
| seed | {config.seed} |
| jsfree | {jsfree.__version__} |
| configuration | {config.own_fingerprint} |

{prompt}
"""


def _ordered(config: RunConfig) -> str:
    """How the order of a pair was verified by the mean scores of its captions."""
    handling = {
        "swap": "swapped",
        "drop": "left out",
        "keep": "kept in their order",
        "random": "ordered at random, as all others",
    }[config.select.inverted]
    judge = config.score.judge_name
    if config.clip.second is None:
        return (
            f"{judge} scored every sentence against the image; pairs whose scores contradict their order were"
            f"\n{handling}."
        )
    dropped = "" if config.select.inverted == "keep" else ", and those on which the models disagree left out"
    return (
        "Two CLIP models scored every sentence against the image; pairs whose order both contradict were"
        f"\n{handling}{dropped}."
    )


def _composed(config: RunConfig, statistics: dict[str, Any]) -> str:
    """How sentences were verified, and pairs and composed captions formed from them."""
    score = config.score.score_name
    signals = {
        "clip+likelihood": f"its {score} and the captioner's own probability of its tokens",
        "clip": f"its {score}",
        "likelihood": "the captioner's own probability of its tokens",
    }[config.select.coverage.signals]
    places = " and ".join(
        {"records": "the field `composed` of each record", "provenance.jsonl": "`provenance.jsonl`"}[place]
        for place in statistics["composed"]
    )
    return (
        f"It generated {config.generate.samples} further captions at ratio 0. Every sentence was verified without"
        f" labels by {signals}, pooled over the captions of the image that say the same. Chosen is the caption that"
        " covers most verified claims; rejected is the one at the higher ratio or, in"
        f" {statistics['edited']:,} pairs, the chosen one with a sentence omitted or repeated. A composed caption is a"
        " caption without its false and repeated sentences, followed by verified sentences of the others. Composed"
        f" captions are in {places}, with what was done to each sentence and its log-odds of being true."
    )


def _counts(statistics: dict[str, Any]) -> str:
    composed = {
        "images that gave no pair": statistics["unformed"],
        "images without log-probabilities under m0": statistics["without_likelihood"],
    }
    dropped = {
        "dropped for identical captions": statistics["identical"],
        "dropped for a truncated caption": statistics["truncated"],
        "dropped because their order was inverted": statistics["dropped_inverted"],
        "dropped for a chosen caption that repeats more": statistics["repeating"],
    }
    if statistics["scorers"] > 1:
        dropped["dropped because the CLIP models disagree"] = statistics["disagreed"]
    rows = {
        "pairs made": statistics["generated"],
        "samples and pairs that failed": statistics["failed"],
        "excluded, because the image is also in the evaluation set": statistics["excluded"],
        "pairs scored": statistics["scored"],
        **(composed if statistics["strategy"] == "coverage" else dropped),
        "selected for training": statistics["selected"],
        "left out here, image not usable": statistics["left_out"],
        "**in this set**": statistics["exported"],
        f"inverted by {statistics['judge']}, of all scored": _percent(statistics["scored_inverted_share"]),
        f"inverted by {statistics['judge']}, in this set": _percent(statistics["inverted_share"]),
    }
    return "## Counts\n\n| | |\n|---|---:|\n" + "\n".join(
        f"| {name} | {_cell(value)} |" for name, value in rows.items()
    )


def _ratios(statistics: dict[str, Any]) -> str:
    lines = ["## Hallucination ratios", "", "| caption decoded at | mean | minimum | maximum |", "|---|---:|---:|---:|"]
    for role, words in (("low", "the lower ratio"), ("high", "the higher ratio")):
        spread = statistics["ratios"][role]
        cells = ["unknown"] * 3 if spread is None else [f"{spread[key]:.3f}" for key in ("mean", "min", "max")]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gaps(statistics: dict[str, Any]) -> str:
    largest = max(gap_bin["pairs"] for gap_bin in statistics["gaps"])
    spread = statistics["gap"]
    gap = f"Mean sentence score ({statistics['score']}) of the chosen caption minus that of the rejected one, × 100:"
    if statistics["scorers"] > 1 and statistics["pairs"] == "selected":
        gap = (
            "Score of the chosen caption minus that of the rejected one, as the mean over both CLIP models, each in"
            " units of its own spread (the root mean square of its differences in the round):"
        )
    if statistics["strategy"] == "coverage":
        gap = (
            "Coverage of the chosen caption minus that of the rejected one. Coverage is the sum, over the claims of a"
            " caption, of the probability that each is true minus ½, and −½ for each sentence without a new claim:"
        )
    lines = [
        "## Score gaps",
        "",
        f"{gap} {spread['mean']:.2f} on average, {spread['min']:.2f} to {spread['max']:.2f}.",
        "",
        "| gap | pairs | |",
        "|---|---:|---|",
    ]
    for gap_bin in statistics["gaps"]:
        bar = "█" * round(BAR * gap_bin["pairs"] / largest)
        lines.append(f"| {gap_bin['from']:.2f} to {gap_bin['to']:.2f} | {gap_bin['pairs']} | {bar} |")
    return "\n".join(lines)


def _size(pairs: int) -> str:
    """The hub's size category for a number of rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    return names[sum(pairs >= size for size in SIZES)]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _cell(value: int | str | None) -> str:
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else f"{value:,}"

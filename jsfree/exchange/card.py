"""What is said of an exported set: its figures, and a data set card for the Hugging Face hub."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import yaml

import jsfree
from jsfree.run.run import Run
from jsfree.schemas import SelectedPair

BINS = 10
BAR = 40
SIZES = (1_000, 10_000, 100_000, 1_000_000)
STAGES = ("samples", "pairs", "scored")


@dataclass
class Tally:
    """What is kept in memory of every exported pair, and of those left out; only known ratios."""

    gaps: array[float] = field(default_factory=lambda: array("d"))
    low: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    inverted: int = 0
    left_out: int = 0
    first: str = ""
    """Why the first one was left out."""

    @property
    def pairs(self) -> int:
        """Pairs that were exported."""
        return len(self.gaps)

    def add(self, pair: SelectedPair) -> None:
        """Count an exported pair."""
        self.gaps.append(pair["gap"])
        for ratios, caption in ((self.low, pair["low"]), (self.high, pair["high"])):
            if caption["ratio"] is not None:
                ratios.append(caption["ratio"])
        self.inverted += pair["inverted"]

    def leave_out(self, why: str) -> None:
        """Count a pair that cannot be exported."""
        self.left_out += 1
        self.first = self.first or why


def figures(run: Run, number: int, pairs: str, tally: Tally) -> dict[str, Any]:
    """Counts of a round's stages, and the distributions of what was exported; gaps are CLIP cosines times 100.

    ``inverted_share`` is of the exported pairs, ``scored_inverted_share`` of all scored ones. What a stage that is not
    done would tell is None.
    """
    done = {name: manifest for name in (*STAGES, "selected") if (manifest := run.manifest(number, name))}
    chosen = done["selected"].facts if "selected" in done else {}
    gaps = array("d", (100 * gap for gap in tally.gaps))
    return {
        "round": number,
        "pairs": pairs,
        "exported": tally.pairs,
        "left_out": tally.left_out,
        "generated": done["pairs"].rows_out if "pairs" in done else None,
        "excluded": done["pairs"].facts.get("excluded", 0) if "pairs" in done else None,
        "failed": sum(done[name].rows_failed for name in STAGES if name in done),
        "scored": done["scored"].rows_out if "scored" in done else None,
        "identical": chosen.get("identical"),
        "truncated": chosen.get("truncated"),
        "dropped_inverted": chosen.get("dropped_inverted"),
        "repeating": chosen.get("repeating"),
        "selected": chosen.get("kept"),
        "scored_inverted_share": chosen.get("inverted_share"),
        "inverted_share": tally.inverted / tally.pairs,
        "ratios": {"low": _spread(tally.low), "high": _spread(tally.high)},
        "gap": _spread(gaps),
        "gaps": histogram(gaps),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, least and largest of the values; None where there are none."""
    return {"mean": fmean(values), "min": min(values), "max": max(values)} if values else None


def histogram(values: Sequence[float]) -> list[dict[str, Any]]:
    """How many values are in each of ``BINS`` equal bins from the least to the largest; the last one is closed."""
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    edges = [low + width * index for index in range(BINS + 1)]
    return [{"from": edges[at], "to": edges[at + 1], "pairs": count} for at, count in enumerate(counts)]


def card(run: Run, found: dict[str, Any], files: str, features: Sequence[dict[str, Any]]) -> str:
    """The set's README.md: front matter for the hub, and what it is in words and figures."""
    head = {
        "license": "unknown",
        "task_categories": ["image-text-to-text"],
        "tags": ["preference", "dpo", "image-captioning", "jsfree"],
        "size_categories": [_size(found["exported"])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
        # Through JSON: YAML would say parts that are alike once and refer to them, which datasets cannot read.
        **({"dataset_info": {"features": json.loads(json.dumps(features))}} if features else {}),
    }
    parts = [_made(run, found), _counts(found), _ratios(found), _gaps(found), LICENCE]
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# Preference pairs of image captions\n\n"
        + "\n\n".join(part.strip() for part in parts)
        + "\n"
    )


LICENCE = """
## Licence

The licence above is not filled in. It follows from the licences of the images, of the captioner and of CLIP: whoever
publishes this set has to look them up and state it.
"""


def _made(run: Run, found: dict[str, Any]) -> str:
    config = run.config
    if config.imported is not None:
        made = f"The pairs were made elsewhere and imported ({config.imported.format}: `{config.imported.path}`)."
        asked = "Each pair has its own prompt."
    else:
        made = (
            "The captioner wrote two captions of every image by dual-path decoding (arXiv 2411.17760): each token is"
            " drawn from a mixture of what it says with the image and, by the hallucination ratio, without it."
        )
        asked = f"Prompt: `{config.prompt}`"
    ways = {"swap": "swapped", "drop": "left out", "keep": "kept in the order they came in"}
    clip = config.clip.versioned_ref + (f" ({config.clip.pretrained})" if config.clip.pretrained else "")
    improved = f", improved in {found['round'] - 1} rounds" if found["round"] > 1 else ""
    return f"""
{found["exported"]:,} pairs, format `{found["format"]}`, images: {found["images"]}.

## How it was made

{made} CLIP scored every sentence against the image; pairs whose scores contradict their order were
{ways[config.select.inverted]}. The rows are the {found["pairs"]} pairs of round {found["round"]};
`provenance.jsonl` has ratio, score and gap of each, in the same order.

| | |
|---|---|
| captioner | `{config.captioner.versioned_ref}`{improved} |
| CLIP | `{clip}` |
| seed | {config.seed} |
| jsfree | {jsfree.__version__} |
| configuration | {config.own_fingerprint} |

{asked}
"""


def _counts(found: dict[str, Any]) -> str:
    rows = {
        "pairs made": found["generated"],
        "samples and pairs that failed": found["failed"],
        "excluded, because the image is also in the evaluation set": found["excluded"],
        "pairs scored": found["scored"],
        "dropped for identical captions": found["identical"],
        "dropped for a caption that was cut": found["truncated"],
        "dropped because CLIP inverted them": found["dropped_inverted"],
        "dropped for a chosen caption that repeats more": found["repeating"],
        "selected for training": found["selected"],
        "left out here, image not usable": found["left_out"],
        "**in this set**": found["exported"],
        "inverted by CLIP, of all scored": _percent(found["scored_inverted_share"]),
        "inverted by CLIP, in this set": _percent(found["inverted_share"]),
    }
    return "## Counts\n\n| | |\n|---|---:|\n" + "\n".join(
        f"| {name} | {_cell(value)} |" for name, value in rows.items()
    )


def _ratios(found: dict[str, Any]) -> str:
    lines = ["## Hallucination ratios", "", "| caption decoded at | mean | least | largest |", "|---|---:|---:|---:|"]
    for role, words in (("low", "the lower ratio"), ("high", "the higher ratio")):
        spread = found["ratios"][role]
        cells = ["unknown"] * 3 if spread is None else [f"{spread[key]:.3f}" for key in ("mean", "min", "max")]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gaps(found: dict[str, Any]) -> str:
    most = max(each["pairs"] for each in found["gaps"])
    spread = found["gap"]
    lines = [
        "## Score gaps",
        "",
        "CLIP cosine of the chosen caption less that of the rejected one, times 100:"
        f" {spread['mean']:.2f} on average, {spread['min']:.2f} to {spread['max']:.2f}.",
        "",
        "| gap | pairs | |",
        "|---|---:|---|",
    ]
    for each in found["gaps"]:
        bar = "█" * round(BAR * each["pairs"] / most)
        lines.append(f"| {each['from']:.2f} to {each['to']:.2f} | {each['pairs']} | {bar} |")
    return "\n".join(lines)


def _size(pairs: int) -> str:
    """The hub's name for a set of so many rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    return names[sum(pairs >= size for size in SIZES)]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _cell(value: int | str | None) -> str:
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else f"{value:,}"

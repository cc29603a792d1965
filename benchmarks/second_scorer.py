"""What a second scorer adds on MiniWorld: how often pairs are ordered rightly by each CLIP model and by both.

    jsfree run --config configs/miniworld-plain.yaml
    python -c "from pathlib import Path; from jsfree.pretraining.pretrain import Budget, pretrain_clip;
               pretrain_clip(Path('runs/second/clip'), 1, None, Budget(clip_scenes=12_000, clip_steps=400))"
    python benchmarks/second_scorer.py --run runs/miniworld-plain --second runs/second/clip

The second command pre-trains a CLIP of another seed, in 3 minutes of CPU time. Stored pairs of the run's first round
are scored with the run's scorer and the second one and selected as the stage ``select`` does. The truth of the scenes
tells whether the chosen caption names fewer absent objects than the rejected one. The result is written to
``benchmarks/results/second_scorer_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from measuring import command_line, publish

from jsfree import config, schemas
from jsfree.config import Select
from jsfree.evaluation import miniworld
from jsfree.evaluation.statistics import wilson
from jsfree.miniworld.world import scene_from_id
from jsfree.run.run import Run
from jsfree.stages.pair_selection import select_pairs
from jsfree.stages.two_scorers import TwoScorers

AT_ONCE = 200
PARTS = {"all pairs": Select(splits=1, first=1, last=1), "splits 4 to 7 of 10": Select()}


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--run", required=True, help="a finished run on MiniWorld")
    parser.add_argument("--second", required=True, help="reference of the second CLIP model")
    parser.add_argument("--pairs", type=int, default=2400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    run = Run.existing(arguments.run)
    stored = run.stage(1, "scored").read_shards(schemas.SCORED).to_pylist()[: arguments.pairs]
    clip = {**run.config.clip.model_dump(), "second": {"ref": arguments.second}}
    settings = config.build({"clip": clip}, where="--second")
    both = scored_by_two(stored, TwoScorers(settings))
    variants = {"first": [by_one(row, "") for row in both], "second": [by_one(row, "second_") for row in both]}
    absent = {row["sample_id"]: absent_objects(row) for row in both}
    figures: dict[str, Any] = {"pairs": len(both), "agreement": select_pairs(both, Select(), 0).facts["agreement"]}
    for part, select in PARTS.items():
        kept = select.model_copy(update={"inverted": "keep"})
        figures[part] = {
            "ratios": quality(select_pairs(variants["first"], kept, 0).rows, absent),
            **{name: quality(select_pairs(rows, select, 0).rows, absent) for name, rows in variants.items()},
            "both": quality(select_pairs(both, select, 0).rows, absent),
        }
        for name, found in figures[part].items():
            print(f"{part}, {name}: {found}")
    publish("second_scorer", {}, figures, [*loads, os.getloadavg()[0]])


def scored_by_two(stored: Sequence[Any], scorer: TwoScorers) -> list[Any]:
    """The pairs, scored again by two scorers."""
    caption = [field.name for field in schemas.DECODED]
    pairs = [
        {
            **{name: row[name] for name in schemas.PAIRS.names},
            **{role: {name: row[role][name] for name in caption} for role in ("low", "high")},
        }
        for row in stored
    ]
    return [row for at in range(0, len(pairs), AT_ONCE) for row in scorer(pairs[at : at + AT_ONCE]).rows]


def by_one(row: dict[str, Any], prefix: str) -> Any:
    """The row of a run in which only the scorer with the columns ``<prefix>low`` and ``<prefix>high`` scores."""
    low, high = ({**row[role], **row[prefix + role]} for role in ("low", "high"))
    own = {name: row[name] for name in schemas.SCORED.names}
    difference = low["score"] - high["score"]
    return {**own, "low": low, "high": high, "inverted": difference < 0, "gap": abs(difference)}


def absent_objects(row: dict[str, Any]) -> dict[str, int]:
    """Mentions of absent objects in each caption of a pair."""
    scene = scene_from_id(row["image"]["id"])
    return {role: len(miniworld.hallucinated_mentions(scene, row[role]["text"])) for role in ("low", "high")}


def quality(rows: Sequence[Any], absent: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Share of the pairs whose chosen caption names fewer absent objects, of those that differ in it."""
    right = wrong = 0
    for row in rows:
        counts = absent[row["sample_id"]]
        chosen = "low" if row["chosen"]["text"] == row["low"]["text"] else "high"
        difference = counts["high" if chosen == "low" else "low"] - counts[chosen]
        right, wrong = right + (difference > 0), wrong + (difference < 0)
    interval = wilson(right, right + wrong)
    return {
        "pairs": len(rows),
        "right": right,
        "wrong": wrong,
        "right_share": interval.value,
        "interval": [interval.low, interval.high],
    }


if __name__ == "__main__":
    main()

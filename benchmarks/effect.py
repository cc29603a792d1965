"""The effect of the method in MiniWorld: three loop seeds each of the default and of the paper's literal setting.

    make effect            (or: python benchmarks/effect.py [--seeds 0 1 2] [--weights FOLDER])

Measured on test scenes that were not used to choose any setting (docs/log.md). ``--weights`` repeats it from another
m0, made by ``jsfree miniworld pretrain --seed 1 --out FOLDER``. The result is written to
``benchmarks/results/effect_<date>_<hardware>.json`` and printed as the last line. Finished runs are not repeated; the
date is that of the newest run.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from measuring import command_line, publish

from jsfree import config as configuration
from jsfree.evaluation.metrics import TRUTH
from jsfree.evaluation.statistics import wilson
from jsfree.run.record import read_record
from jsfree.run.run import Run
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter

ROOT = Path(__file__).parents[1]
SETTINGS = {"default": "miniworld.yaml", "paper": "miniworld-paper.yaml"}


def main() -> None:
    """Run the loops, then summarise, write and print the result."""
    arguments = parse()
    loads = [os.getloadavg()[0]]
    figures: dict[str, Any] = {}
    created: list[str] = []
    for name, file in SETTINGS.items():
        if name in arguments.settings:
            runs = [loop(name, file, seed, arguments) for seed in arguments.seeds]
            started = [read_record(run)["created"] for run in runs]
            figures[name] = {"seeds": arguments.seeds, "created": started, **summary(runs)}
            created += started
    loads.append(os.getloadavg()[0])
    suffix = f"-{arguments.weights.name}" if arguments.weights else ""
    publish(f"effect{suffix}", {}, figures, loads, date=max(created)[:10])


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--weights", type=Path, help="folder with captioner/ and clip/ of another pre-training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "effect")
    return parser.parse_args()


def loop(name: str, file: str, seed: int, arguments: argparse.Namespace) -> Run:
    """Run one loop, unless it is finished."""
    m0 = arguments.weights.name if arguments.weights else "shipped"
    overrides = [f"run={arguments.runs}/{m0}-{name}-{seed}", f"seed={seed}"]
    if arguments.weights:
        overrides += [f"{part}.ref={arguments.weights.resolve() / part}" for part in ("captioner", "clip")]
    config = configuration.load(ROOT / "configs" / file, overrides)
    reporter = Reporter()
    reporter.say(f"{name}, seed {seed}, m0 {m0}")
    pipeline.run(config, reporter)
    return Run.existing(config.run)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Means and ranges over the seeds of metrics before and after, and the effect of inversion."""
    metrics = [run.round(run.config.rounds).read_json("metrics.json") for run in runs]
    modes = {
        mode: {
            key: {
                "before": spread([m["before"][mode][key]["value"] for m in metrics]),
                "after": spread([m["after"][mode][key]["value"] for m in metrics]),
                "after_intervals": [[m["after"][mode][key]["low"], m["after"][mode][key]["high"]] for m in metrics],
            }
            for key in [metric.name for metric in TRUTH if not metric.secondary]
        }
        for mode in metrics[0]["before"]
    }
    return {"scenes": metrics[0]["scenes"], **modes, "inversion": [inversion(run) for run in runs]}


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def inversion(run: Run) -> dict[str, Any]:
    """How often CLIP's inversion is right: whether the new winner names fewer absent objects than the new loser."""
    from jsfree import schemas
    from jsfree.evaluation.miniworld import count_caption
    from jsfree.miniworld.world import scene_from_id

    pairs = run.stage(1, "scored").read_shards(schemas.SCORED).to_pylist()
    right = wrong = 0
    inverted = [pair for pair in pairs if pair["inverted"]]
    for pair in inverted:
        scene = scene_from_id(pair["image"]["id"])
        winner, loser = (count_caption(scene, pair[role]["text"]).hallucinated for role in ("high", "low"))
        right += winner < loser
        wrong += winner > loser
    interval = wilson(right, right + wrong)
    return {
        "share": len(inverted) / len(pairs),
        "right": right,
        "wrong": wrong,
        "right_share": interval.value,
        "interval": [interval.low, interval.high],
    }


if __name__ == "__main__":
    main()

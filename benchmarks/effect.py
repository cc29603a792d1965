"""The effect of the method in MiniWorld: loop seeds of the default, plain DPO and the paper's literal setting.

    make effect            (or: python benchmarks/effect.py [--seeds 0 1 2] [--settings default] [--weights FOLDER])
    make effect-all        the default with several views, over four rounds, from another m0, and in the prose world

Measured on test scenes 3000 to 4999, which were not used to choose any setting (docs/log.md). ``--views 3 5`` also
decodes with 3 and 5 views, from both models, and with ``--view-modes greedy`` only greedily; ``--rounds 4`` runs four
rounds; stages of a finished run are taken from it. ``--weights`` repeats it from another m0, made by ``jsfree miniworld
pretrain --seed 1 --out FOLDER``. The result is written to ``benchmarks/results/effect_<date>_<hardware>.json`` and
printed as the last line. Finished runs are not repeated; the date is that of the newest run.

Changes are paired: scenes are resampled, with the captions of both models and of all seeds. The CPU time of a loop is
that of generating, scoring, selecting and training, without evaluation and the start of workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command_line, publish, spread

from jsfree import config as configuration
from jsfree import schemas
from jsfree.evaluation import miniworld
from jsfree.evaluation.metrics import TRUTH
from jsfree.evaluation.statistics import wilson
from jsfree.miniworld.world import scene_from_id
from jsfree.run.record import read_record
from jsfree.run.run import Run
from jsfree.run.streaming import scan
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "default": "miniworld.yaml",
    "plain": "miniworld-plain.yaml",
    "paper": "miniworld-paper.yaml",
    "prose": "miniworld-prose.yaml",
    "qwen": "miniworld-qwen.yaml",
}
COMPARED = ["default", "plain", "paper"]
"""Settings of one world, measured if none is named."""
FIRST, SCENES = 3000, 2000
RESAMPLES = 2000
TEMPERATURES = {"greedy": 0, "sampled": 1}
RELATIVE = ("response_hallucination", "mention_hallucination", "duplicates", "invented", "misnamed")
"""Metrics whose change is relative to m0; that of the others is a difference."""
LOOP = ("pairs", "scored", "likelihoods", "selected", "train")
MAX_COST = 2.2


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
    ratios = {}
    if {"default", "plain"} <= figures.keys():
        costs = zip(figures["default"]["loop_seconds"], figures["plain"]["loop_seconds"], strict=True)
        ratios["default_over_plain_cost"] = spread([default / plain for default, plain in costs], MAX_COST)
    publish(f"effect{_suffix(arguments)}", ratios, figures, loads, date=max(created)[:10])


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=COMPARED)
    parser.add_argument("--views", type=int, nargs="+", default=[], help="also decode with these numbers of views")
    parser.add_argument("--view-modes", nargs="+", choices=list(TEMPERATURES), default=list(TEMPERATURES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"test scenes from {FIRST} on (default {SCENES})")
    parser.add_argument("--weights", type=Path, help="folder with captioner/ and clip/ of another pre-training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "effect")
    return parser.parse_args()


def loop(name: str, file: str, seed: int, arguments: argparse.Namespace) -> Run:
    """Run one loop, unless it is finished."""
    m0 = arguments.weights.name if arguments.weights else "shipped"
    plain = f"{arguments.runs}/{m0}-{name}-{seed}"
    overrides = [
        f"run={plain}{_suffix(arguments, with_models=False)}",
        f"reuse=[{plain}]" if _suffix(arguments, with_models=False) else "reuse=[]",
        f"rounds={arguments.rounds}",
        *(
            f"evaluate.modes.{mode}{f'-{count}-views' if count > 1 else ''}="
            f"{{temperature: {temperature}, views: {{count: {count}}}}}"
            for mode, temperature in TEMPERATURES.items()
            for count in (1, *arguments.views)
            if count == 1 or mode in arguments.view_modes
        ),
        f"seed={seed}",
        f"evaluate.source.first={FIRST}",
        f"evaluate.source.count={arguments.scenes}",
    ]
    if arguments.weights:
        overrides += [f"{part}.ref={arguments.weights.resolve() / part}" for part in ("captioner", "clip")]
    config = configuration.load(ROOT / "configs" / file, overrides)
    reporter = Reporter()
    reporter.say(f"{name}, seed {seed}, m0 {m0}")
    pipeline.run(config, reporter)
    return Run.existing(config.run)


def _suffix(arguments: argparse.Namespace, *, with_models: bool = True) -> str:
    """Marks results, or runs of the same models, that differ from the usual ones."""
    parts = [
        arguments.settings[0] if with_models and arguments.settings in (["prose"], ["qwen"]) else "",
        arguments.weights.name if with_models and arguments.weights else "",
        "views" if arguments.views else "",
        f"{arguments.rounds}-rounds" if arguments.rounds > 1 else "",
    ]
    return "".join(f"-{part}" for part in parts if part)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Metrics before and after with means and ranges over the seeds, paired changes, times and CLIP's inversions."""
    metrics = [run.round(run.config.rounds).read_json("metrics.json") for run in runs]
    by_round = [[run.round(number).read_json("metrics.json")["after"] for number in run.rounds()] for run in runs]
    modes = {
        mode: {
            key: {
                "before": over_seeds([m["before"][mode][key]["value"] for m in metrics]),
                "after": over_seeds([m["after"][mode][key]["value"] for m in metrics]),
                "after_intervals": [[m["after"][mode][key]["low"], m["after"][mode][key]["high"]] for m in metrics],
            }
            for key in [metric.name for metric in TRUTH if not metric.secondary]
        }
        for mode in metrics[0]["before"]
    }
    for mode, measured in modes.items():
        for key, change in changes(runs, mode).items():
            measured[key]["change"] = change
    return {
        "scenes": metrics[0]["scenes"],
        **modes,
        "rounds": [
            {
                mode: {key: over_seeds([after[mode][key]["value"] for after in of_round]) for key in measured}
                for mode, measured in modes.items()
            }
            for of_round in zip(*by_round, strict=True)
        ],
        "loop_seconds": [loop_seconds(run) for run in runs],
        "inversion": [inversion(run) for run in runs],
    }


def over_seeds(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def changes(runs: Sequence[Run], mode: str) -> dict[str, dict[str, Any]]:
    """The change of each metric from m0 to the last model, with a paired 95 % interval over scenes."""
    sums: dict[str, dict[str, Any]] = {}
    for run in runs:
        last = run.config.rounds
        for when, number, model in (("before", 1, "m0"), ("after", last, f"m{last}")):
            for scene, columns in counted(run, number, f"{model}-{mode}").items():
                sums.setdefault(scene, {"before": 0, "after": 0})[when] += columns
    before_NK, after_NK = (np.array([each[when] for each in sums.values()]) for when in ("before", "after"))
    draws_RN = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    weights_RN = np.concatenate([np.ones((1, len(sums))), draws_RN])
    found = {}
    for name, statistic in miniworld.STATISTICS.items():
        before_R, after_R = statistic(weights_RN @ before_NK), statistic(weights_RN @ after_NK)
        change_R = after_R / before_R - 1 if name in RELATIVE else after_R - before_R
        low, high = np.nanpercentile(change_R[1:], (2.5, 97.5))
        found[name] = {
            "value": float(change_R[0]), "low": float(low), "high": float(high), "relative": name in RELATIVE
        }  # fmt: skip
    return {name: each for name, each in found.items() if not _is_secondary(name)}


def counted(run: Run, number: int, captions: str) -> dict[str, Any]:
    """The counts of each scene's caption, as the columns of ``miniworld.STATISTICS``."""
    tables = scan(run.stage(number, f"captions/{captions}"), schemas.CAPTIONS, ["image.id", "text"])
    rows = (row for table in tables for row in table.to_pylist())
    return {
        row["image"]["id"]: np.array(
            miniworld.count_columns(miniworld.count_caption(scene_from_id(row["image"]["id"]), row["text"])), float
        )
        for row in rows
    }


def _is_secondary(name: str) -> bool:
    return next(metric.secondary for metric in TRUTH if metric.name == name)


def loop_seconds(run: Run) -> float:
    """Device seconds of the stages of a loop."""
    manifests = [run.manifest(number, name) for number in run.rounds() for name in LOOP]
    return sum(max(each.device_seconds, each.seconds if not each.tokens else 0.0) for each in manifests if each)


def inversion(run: Run) -> dict[str, Any]:
    """How often CLIP's inversion is right: whether the new winner names fewer absent objects than the new loser."""
    pairs = run.stage(1, "scored").read_shards(schemas.SCORED).to_pylist()
    right = wrong = 0
    inverted = [pair for pair in pairs if pair["inverted"]]
    for pair in inverted:
        scene = scene_from_id(pair["image"]["id"])
        winner, loser = (miniworld.count_caption(scene, pair[role]["text"]).hallucinated for role in ("high", "low"))
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

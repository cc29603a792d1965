"""CPU time of one round with verified sentences against plain DPO: generating, scoring, selecting and training.

    python benchmarks/loop_cost.py [--rounds 3] [--images 400]

CPU time of one thread in one process, both in turn, after a warm-up of each; by the classes that the stages run on Ray.
Loading the models counts, starting workers and evaluation do not.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from dpo import one_worker
from measuring import command_line, publish, ratio

from jsfree import config as configuration
from jsfree import schemas
from jsfree.config import RunConfig
from jsfree.dpo.loop import Folders, Hooks, Models, train
from jsfree.dpo.pairs import PairTable
from jsfree.images.sources import training_samples
from jsfree.models.clip import load_clip
from jsfree.models.clip_text import TextEncoder
from jsfree.run.folder import Folder, shard_name
from jsfree.stages.coverage_selection import CandidateTable, CoverageSelection, fit
from jsfree.stages.scored_captioning import ScoredPairGenerator
from jsfree.stages.shard_selection import select_shards

ROOT = Path(__file__).parents[1]
MAX_COST = 2.2
PARTS = ("generate and score", "select", "train")


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    configs = {
        name: configuration.load(ROOT / "configs" / file, [f"source.count={arguments.images}"])
        for name, file in (("plain", "miniworld-plain.yaml"), ("verified", "miniworld.yaml"))
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for number in range(arguments.rounds + 1):
        for name, config in configs.items():
            with tempfile.TemporaryDirectory(prefix="loop-cost-") as folder:
                measured = loop(config, Path(folder))
            if number:
                seconds[name].append(measured)
    loads.append(os.getloadavg()[0])
    totals = {name: [sum(each.values()) for each in rounds] for name, rounds in seconds.items()}
    figures = {
        "images": arguments.images,
        "cpu_seconds": {
            name: {part: sorted(each[part] for each in rounds)[len(rounds) // 2] for part in PARTS}
            for name, rounds in seconds.items()
        },
    }
    publish("loop_cost", {"verified_over_plain": ratio(totals["verified"], totals["plain"], MAX_COST)}, figures, loads)


def loop(config: RunConfig, folder: Path) -> dict[str, float]:
    """Run one round in this process; return the CPU seconds of its parts."""
    seconds: dict[str, float] = {}
    scored, selected = Folder(f"{folder}/scored"), Folder(f"{folder}/selected")
    with timed(seconds, PARTS[0]):
        generate(config, scored)
    with timed(seconds, PARTS[1]):
        select(config, scored, selected)
    with timed(seconds, PARTS[2]), one_worker(folder / "store"):
        pairs = PairTable(selected, schemas.selected_schema(config.select.strategy))
        folders = Folders(*(Folder(f"{folder}/{name}") for name in ("reference", "features", "model")))
        ref = config.captioner.versioned_ref
        hooks = Hooks(lambda *_: None, lambda *_: None, None)
        train(config, pairs, Models(ref, ref, "m0"), folders, hooks, "cpu")
    return seconds


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Record the CPU time of a part."""
    started = time.process_time()
    yield
    seconds[part] = time.process_time() - started


def generate(config: RunConfig, scored: Folder) -> None:
    """Captions of all images, and their scores, as shards."""
    generator = ScoredPairGenerator(config, config.captioner.versioned_ref, round_number=1)
    samples = list(training_samples(config, 1))
    for number, start in enumerate(range(0, len(samples), config.shard_rows)):
        output = generator(samples[start : start + config.shard_rows])
        rows: list[Any] = list(output.second_stage.rows) if output.second_stage else []
        scored.write_table(
            shard_name(number), pa.Table.from_pylist(rows, schema=schemas.scored_schema(config.generate.samples))
        )


def select(config: RunConfig, scored: Folder, selected: Folder) -> None:
    """Pairs by the strategy of the settings."""
    if config.select.strategy == "gap":
        select_shards(scored, selected, config.select, config.seed, config.shard_rows)
        return
    candidates = CandidateTable(scored)
    verification = fit(candidates, config.select, partial(embed, config))
    CoverageSelection(candidates, verification, config.select, config.seed, 1).write(selected, config.shard_rows)


def embed(config: RunConfig, words: Any) -> Any:
    """CLIP embeddings of words."""
    return TextEncoder(load_clip(config.clip.versioned_ref)).encode(list(words))[0].numpy()


if __name__ == "__main__":
    main()

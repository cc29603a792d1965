"""Speed, memory and losses of DPO against TRL's DPOTrainer.

    python benchmarks/dpo.py [--rounds 5]

CPU time of one thread, both in turn, including reading and preprocessing images, the reference and the optimizer. A
tiny LLaVA with random weights; both get the same pairs in the same order.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from dpo_pairs import drawn_pairs, tiny
from measuring import MemoryGrowth, command_line, publish, ratio

from jsfree import config
from jsfree.config import RunConfig
from jsfree.dpo import loop
from jsfree.dpo.batching import epoch_order, micro_batches, pair_length
from jsfree.dpo.loop import Folders, Hooks, Models, learning_rate, train
from jsfree.models.loading import load_captioner
from jsfree.run.folder import Folder
from jsfree.schemas import SelectedPair
from ray_jobs.quiet import silent_output

TARGETS = {"trl_pairs_per_second": 2.5, "trl_peak_memory_cost": 1 / 3, "second_epoch": 1.3}
WORKERS_COST = 1.15
EPOCHS = ("first", "second", "both")
CURVE = 1e-3
MICRO = 4


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=["memory", "worker"], help=SUPPRESS)
    parser.add_argument("--job", help=SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](**json.loads(arguments.job))))
    else:
        against_trl(arguments.rounds)


def against_trl(rounds: int) -> None:
    """Measure speed, memory and the cost of two workers, on CPUs."""
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="dpo-") as folder:
        path = Path(folder)
        speed, figures = speeds(path / "speed", rounds)
        taken = memories(path / "memory", rounds)
        workers = workers_cost(path / "workers", rounds)
    loads.append(os.getloadavg()[0])
    ratios = {
        **speed,
        "trl_peak_memory_cost": ratio(taken["jsfree"], taken["trl"], TARGETS["trl_peak_memory_cost"]),
        "two_workers_cost": workers,
    }
    figures["extra_peak_memory_bytes"] = {name: statistics.median(values) for name, values in taken.items()}
    publish("dpo", ratios, figures, loads)


def settings(count: int, workers: int = 1, **changes: Any) -> RunConfig:
    """A training with ``count`` pairs per epoch."""
    train = {"pairs_per_step": 2 * MICRO, "pairs_per_worker": MICRO, "epochs": 2, "learning_rate": 1e-4}
    resources = {"resources": {"replicas": workers}}
    return config.build({"source": {"count": count}, "train": {**train, **resources, **changes}}, where="benchmark")


class TimedTraining:
    """A training that records the CPU time of its preparation and after every step."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.policy = folder, policy
        self.preparing = 0.0
        self.after_step: list[float] = []
        self.loss: list[float] = []

    def run(
        self, settings: RunConfig, pairs: Sequence[SelectedPair], after: Callable[[], None] = lambda: None
    ) -> TimedTraining:
        """Train to the end; ``after`` is called after every step."""

        def progress(history: Sequence[dict[str, float]], _: int) -> None:
            self.after_step.append(time.process_time())
            self.loss = [step["loss"] for step in history]
            after()

        def prepare(trainer: loop.Trainer, *arguments: Any) -> None:
            started = time.process_time()
            PREPARE(trainer, *arguments)
            self.preparing = time.process_time() - started

        folders = Folders(*(Folder(f"{self.folder}/{name}") for name in ("reference", "features", "model")))
        models = Models(str(self.policy), str(self.policy), "m0")
        hooks = Hooks(progress, lambda *_: None, None)
        with mock.patch.object(loop.Trainer, "prepare", prepare):
            train(settings, pairs, models, folders, hooks, "cpu")
        return self

    def seconds_per_step(self, first: int, last: int) -> float:
        """Mean CPU seconds of the steps after ``first`` up to ``last``."""
        return (self.after_step[last] - self.after_step[first]) / (last - first)


PREPARE = loop.Trainer.prepare


def speeds(folder: Path, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pairs per second against TRL, by default and with cached vision features, and the loss curves of both."""
    import dpo_peer

    captioner = tiny(folder / "policy", patches=12, vocabulary=4096)
    pairs, images = drawn_pairs(folder / "images", 32, captioner)
    default = settings(len(pairs), checkpoint_every=1000)
    cached = settings(len(pairs), cache_vision_features=True, checkpoint_every=1000)
    size, epochs = default.train.pairs_per_step, default.train.epochs
    steps = len(pairs) // size
    ordered = in_our_order(default, pairs)
    seconds: dict[str, list[float]] = {name: [] for name in ("trl", *EPOCHS, *(f"cached {name}" for name in EPOCHS))}
    for number in range(rounds + 1):
        ours = {}
        for prefix, chosen in {"": default, "cached ": cached}.items():
            name = f"{prefix.strip()}{number}"
            with one_worker(folder / f"store-{name}"), silent_output(1, 2):
                ours[prefix] = TimedTraining(folder / f"run-{name}", folder / "policy").run(chosen, pairs)
        theirs = dpo_peer.Watch()
        taken, shown = [pairs[at] for at in ordered], [images[at] for at in ordered]
        rate = partial(learning_rate, total=steps * epochs, config=default)
        with silent_output(1, 2):
            dpo_peer.train(folder / "policy", taken, shown, default.train, rate, folder / f"trl-{number}", theirs)
        if number:  # the first step of each run includes start-up and is left out of every figure
            ended = theirs.seconds
            seconds["trl"].append((ended[-1] - ended[0]) / (len(ended) - 1) / size)
            for prefix, run in ours.items():
                first = run.preparing / len(pairs) + run.seconds_per_step(0, steps - 1) / size
                second = run.seconds_per_step(steps - 1, 2 * steps - 1) / size
                for name, value in zip(EPOCHS, (first, second, (first + second) / 2), strict=True):
                    seconds[prefix + name].append(value)
    target = TARGETS["trl_pairs_per_second"]
    ratios = {}
    for prefix, suffix in {"": "", "cached ": "_cached_features"}.items():
        first, second, both = (seconds[prefix + name] for name in EPOCHS)
        ratios |= {
            f"trl_pairs_per_second{suffix}": ratio(seconds["trl"], both, target),
            f"trl_pairs_per_second_first_epoch{suffix}": ratio(seconds["trl"], first, target),
            f"trl_pairs_per_second_later_epochs{suffix}": ratio(seconds["trl"], second, target),
            f"second_epoch{suffix}": ratio(first, second, TARGETS["second_epoch"]),
        }
    curves = {"jsfree": ours[""].loss, "trl": theirs.loss}
    apart = max(abs(one - other) for one, other in zip(*curves.values(), strict=True))
    figures = {
        "milliseconds_a_pair": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "prefix_tokens": len(captioner.prompt_ids(pairs[0]["prompt"], captioner.blank)),
        "tokens_a_caption": statistics.mean(pair_length(pair) / 2 for pair in pairs),
        "losses": curves,
        "losses_apart": {"most": apart, "target": CURVE},
    }
    return ratios, figures


def in_our_order(settings: RunConfig, pairs: Sequence[SelectedPair]) -> list[int]:
    """Indices of the pairs in the order in which one jsfree worker trains on them, over all epochs."""
    size, lengths = settings.train.pairs_per_step, [pair_length(pair) for pair in pairs]
    taken = []
    for epoch in range(settings.train.epochs):
        order = epoch_order(len(pairs), settings.seed, epoch)
        for start in range(0, len(pairs), size):
            for micro in micro_batches(lengths, order[start : start + size], MICRO, rank=0, world=1):
                taken += micro
    return taken


def memories(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Peak bytes of a step beyond the memory before it: 8 pairs, 32,000 words, each run in its own process."""
    tiny(folder / "policy", patches=16, vocabulary=32_000)
    found: dict[str, list[float]] = {"jsfree": [], "trl": []}
    for number in range(rounds):
        for who, values in found.items():
            values.append(own_process("memory", who=who, folder=str(folder), number=number)["bytes"])
    return found


def memory(who: str, folder: str, number: int) -> dict[str, float]:
    """Memory of the second step; the first has created the optimizer's state."""
    path, peak = Path(folder), Peak()
    captioner = load_captioner(f"{folder}/policy")
    pairs, images = drawn_pairs(path / f"images-{who}-{number}", 16, captioner)
    chosen = settings(len(pairs), pairs_per_worker=8, epochs=1, checkpoint_every=1000)
    if who == "jsfree":
        with one_worker(path / f"store-{number}"):
            TimedTraining(path / f"run-{number}", path / "policy").run(chosen, pairs, peak.mark)
    else:
        import dpo_peer

        watch, output = dpo_peer.Watch(peak.mark), path / f"trl-{number}"
        dpo_peer.train(path / "policy", pairs, images, chosen.train, lambda _: 1e-4, output, watch)
    return {"bytes": peak.beyond[1]}


class Peak:
    """Memory growth between two calls of ``mark``."""

    def __init__(self) -> None:
        self.beyond: list[float] = []
        self._since: MemoryGrowth | None = None

    def mark(self) -> None:
        """Record the growth since the last call."""
        self.beyond.append(0.0 if self._since is None else self._since.bytes())
        self._since = MemoryGrowth()


def workers_cost(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time per pair of two workers together over that of one."""
    tiny(folder / "policy", patches=12, vocabulary=4096)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for count, values in seconds.items():
            name = f"{count}-{number}"
            jobs = [
                start_part("worker", folder=str(folder), rank=rank, workers=count, name=name) for rank in range(count)
            ]
            values.append(sum(result_of(job)["seconds"] for job in jobs))
    return ratio(seconds[2], seconds[1], WORKERS_COST)


def worker(folder: str, rank: int, workers: int, name: str) -> dict[str, float]:
    """CPU seconds of one worker's steps without the first."""
    path = Path(folder)
    captioner = load_captioner(f"{folder}/policy")
    pairs, _ = drawn_pairs(path / f"images-{name}-{rank}", 32, captioner)
    chosen = settings(len(pairs), workers, checkpoint_every=1000)
    seen: list[float] = []
    step = loop.Trainer.step

    def timed(trainer: loop.Trainer, *arguments: int) -> dict[str, float]:
        figures = step(trainer, *arguments)
        seen.append(time.process_time())
        return figures

    with one_worker(path / f"store-{name}", rank, workers), mock.patch.object(loop.Trainer, "step", timed):
        TimedTraining(path / f"run-{name}", path / "policy").run(chosen, pairs)
    return {"seconds": seen[-1] - seen[0]}


def own_process(part: str, **job: Any) -> dict[str, float]:
    """The result of a part of this benchmark, run in its own process."""
    return result_of(start_part(part, **job))


def start_part(part: str, **job: Any) -> subprocess.Popen[str]:
    """Start a part in its own process."""
    command = [sys.executable, __file__, "--part", part, "--job", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def result_of(process: subprocess.Popen[str]) -> dict[str, float]:
    """The last line of a part's output.

    Raises:
        RuntimeError: the part failed.
    """
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args}:\n{errors[-4000:]}")
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


@contextmanager
def one_worker(store: Path, rank: int = 0, workers: int = 1) -> Iterator[None]:
    """A process group in which this process is worker ``rank``."""
    import deepspeed

    environment = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(workers)}
    store.parent.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, environment):
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
        try:
            yield
        finally:
            if deepspeed.comm.is_initialized():
                deepspeed.comm.destroy_process_group()
                deepspeed.comm.comm.cdb = None
            else:
                dist.destroy_process_group()


PARTS = {"memory": memory, "worker": worker}


if __name__ == "__main__":
    main()

"""Cost of a sharded stage by number of images and nodes, and utilisation of its actors.

    python benchmarks/scaling.py [--part real|simulated|busy|select|training|driver]

- real: pairs of 500 to 4000 MiniWorld images by one replica: the worker's CPU time per image, and the driver's memory;
- simulated: 1 to 16 nodes on this machine, whose actors sleep instead of computing (``scaling_simulated.py``): the cost
  of scheduling, files and the loss of a node;
- busy: 2,000 images with a LLaVA of 6M parameters and captions of lognormal length: share of the time in which the
  engine steps, and of slots that hold a caption;
- select, training: memory and time of selection and of a training worker by number of pairs (``scaling_pairs.py``);
- driver: the cost of a shard and of a worker for the driver and its board (``scaling_driver.py``).

The result is written to ``benchmarks/results/scaling_<date>_<hardware>.json`` (``scaling-<part>_...`` of one part)
and printed as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measuring import command_line, publish
from PIL import Image
from random_llava import RandomCaptioner, tiny
from scaling_driver import driver
from scaling_pairs import select, training
from scaling_simulated import DriverWatch, rounded, simulated

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout need not be installed

from jsfree import config as configuration
from jsfree import schemas
from jsfree.config import Decoding, RunConfig
from jsfree.decoding.requests import Request, StepResult
from jsfree.decoding.sampling import noise_key
from jsfree.images.sources import training_samples
from jsfree.run.folder import Folder
from jsfree.schemas import Sample, StageOutput
from jsfree.stages.captioning import PairGenerator
from ray_jobs.cluster.session import Cluster
from ray_jobs.shards.actor import ShardedStage, StageCall
from ray_jobs.shards.progress import Counts
from ray_jobs.shards.runner import run_shards
from ray_jobs.shards.tables import Table, total_manifest
from ray_jobs.stages.generate import shards_in_flight, write_samples

CONFIG = Path(__file__).parents[1] / "configs" / "miniworld.yaml"
MEDIAN, SIGMA, MOST = 22, 0.5, 96
"""Lognormal lengths of captions in tokens, and their maximum; the mean is 24."""
PATCHES = 12
FIRST = 200
"""Images of the warm-up run."""
LINEAR, BUSY = 1.10, 0.90


def main() -> None:
    """Measure, write and print."""
    parts = {
        "real": real,
        "simulated": simulated,
        "busy": busy,
        "select": select,
        "training": training,
        "driver": driver,
    }
    parser = command_line(__doc__)
    parser.add_argument("--part", choices=list(parts))
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000], help="real: images of a run")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="simulated")
    parser.add_argument("--samples", type=int, default=100_000, help="simulated")
    parser.add_argument("--shard-rows", type=int, default=128, help="simulated")
    parser.add_argument("--seconds", type=float, default=45.0, help="simulated: what a run would take at best")
    parser.add_argument("--repeat", type=int, default=3, help="simulated: runs with the most nodes; select: runs")
    parser.add_argument("--lose", action=argparse.BooleanOptionalAction, default=True, help="simulated: lose a node")
    parser.add_argument("--images", type=int, default=2000, help="busy")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="select: scored pairs")
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 200_000], help="training: selected pairs")
    arguments = parser.parse_args()
    loads = [os.getloadavg()[0]]
    ratios: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in [arguments.part] if arguments.part else parts:
        found, figures[name] = parts[name](arguments)
        ratios.update(found)
        loads.append(os.getloadavg()[0])
    publish(f"scaling-{arguments.part}" if arguments.part else "scaling", ratios, figures, loads)


class Meter:
    """Writes CPU and wall time of this process from the start of the first call to the end of the last to a file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._begun: tuple[float, float] | None = None

    @contextmanager
    def call(self, more: Callable[[], dict[str, float]]) -> Iterator[None]:
        """Measure a call; ``more`` returns further figures for the file. Thread-safe."""
        with self._lock:
            self._begun = self._begun or (time.process_time(), time.perf_counter())
        yield
        with self._lock:
            cpu, wall = time.process_time() - self._begun[0], time.perf_counter() - self._begun[1]
            self._path.write_text(
                json.dumps({"worker_cpu_seconds": cpu, "worker_seconds": wall, **more()}), encoding="utf-8"
            )


class MeteredPairs(PairGenerator):
    """Stage 1 with a meter."""

    def __init__(self, notes: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._meter = Meter(notes)

    def __call__(self, samples: Sequence[Sample], second: Any = None) -> StageOutput:
        with self._meter.call(self.figures):
            return super().__call__(samples, second)

    def figures(self) -> dict[str, float]:
        """The engine's figures so far."""
        return {"tokens": self.engine.tokens, "slot_utilisation": self.engine.utilisation}


@dataclass(frozen=True)
class ImageCaptioner(RandomCaptioner):
    """A captioner with random weights that preprocesses real images."""

    def pixels(self, image: Image.Image) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        pixels = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC)))
        return pixels.permute(2, 0, 1).float() / 127.5 - 1


class BusyPairs(MeteredPairs):
    """Stage 1 with random weights and captions of lognormal lengths; also measures the engine's steps."""

    def __init__(self, **arguments: Any) -> None:
        with patch("jsfree.stages.captioning.captioner_of", lambda *_: ImageCaptioner(tiny(PATCHES).model, None)):
            super().__init__(**arguments)
        self._step = self.engine.step
        self._stepping, self._first, self._last = 0.0, 0.0, 0.0
        self.engine.step = self._timed_step  # type: ignore[method-assign]

    def figures(self) -> dict[str, float]:
        """``busy``: share of the time in which the engine stepped, from the end of the first step to the last."""
        seconds = self._last - self._first
        return {**super().figures(), "busy": self._stepping / seconds, "first_to_last_token_seconds": seconds}

    def _timed_step(self) -> StepResult:
        started = time.perf_counter()
        step = self._step()
        self._last = time.perf_counter()
        if self._first:
            self._stepping += self._last - started
        else:
            self._first = self._last
        return step

    def _request(self, sample: Sample, pixels: torch.Tensor, role: str, ratio: float) -> Request:
        drawn = np.random.default_rng(noise_key(0, 0, sample["sample_id"], role)).lognormal(np.log(MEDIAN), SIGMA)
        length = Decoding(max_new_tokens=int(np.clip(drawn, 1, MOST)))
        return replace(super()._request(sample, pixels, role, ratio), decoding=length)


def real(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pairs of MiniWorld images by one replica.

    All samples are written first, and a warm-up run precedes, so that the driver's imports do not count.
    """
    runs: dict[int, dict[str, float]] = {}
    with TemporaryDirectory() as folder, Cluster(RunConfig()) as session:
        session.ensure()
        listed(f"{folder}/first", FIRST)
        for images in arguments.sizes:
            listed(f"{folder}/{images}", images)
        generated(f"{folder}/first", FIRST, MeteredPairs, session.board)
        for images in arguments.sizes:
            runs[images] = generated(f"{folder}/{images}", images, MeteredPairs, session.board)
            print(f"real, {images} images:", rounded(runs[images]), flush=True)
    least, most = min(runs), max(runs)
    costs = {images: figures["worker_cpu_seconds_an_image"] for images, figures in runs.items()}
    cost, others = costs[most] / costs[least], [costs[images] / costs[least] for images in runs]
    spread = {"median": cost, "min": min(others), "max": max(others), "target": LINEAR}
    return {f"cpu_an_image_{most}_over_{least}_images": spread}, {
        **{f"{images} images": figures for images, figures in runs.items()},
        **line([*runs], [figures["worker_cpu_seconds"] for figures in runs.values()]),
        "driver_mb_more_with_most_images": runs[most]["driver_mb_most"] - runs[least]["driver_mb_most"],
    }


def line(images: list[int], seconds: list[float]) -> dict[str, float]:
    """Least-squares line through the costs, and the largest relative distance from it."""
    slope, fixed = np.polyfit(images, seconds, 1)
    away = max(abs(each / (fixed + slope * number) - 1) for number, each in zip(images, seconds, strict=True))
    return {"cpu_seconds_an_image_more": float(slope), "cpu_seconds_fixed": float(fixed), "most_off_the_line": away}


def busy(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Utilisation when captions end at different times."""
    with TemporaryDirectory() as folder, Cluster(RunConfig()) as session:
        session.ensure()
        listed(f"{folder}/busy", arguments.images)
        figures = generated(f"{folder}/busy", arguments.images, BusyPairs, session.board)
    print("busy:", rounded(figures), flush=True)
    shares = {"busy": figures["busy"], "slot_utilisation": figures["slot_utilisation"]}
    return {key: {"median": each, "min": each, "max": each, "target": BUSY} for key, each in shares.items()}, figures


def settings(folder: str, images: int) -> RunConfig:
    """MiniWorld's settings for one replica."""
    overrides = [f"source.count={images}", "generate.resources.replicas=1"]
    return configuration.load(CONFIG, overrides, {"run": str(folder)})


def listed(folder: str, images: int) -> None:
    """Write the samples of a run."""
    config = settings(folder, images)
    write_samples(training_samples(config, 1), Folder(f"{folder}/samples"), config.shard_rows)


def generated(folder: str, images: int, build: Callable[..., StageCall], board: Any) -> dict[str, float]:
    """Run stage 1 on MiniWorld images with one replica; costs of the worker and the driver."""
    config = settings(folder, images)
    notes = f"{folder}/notes.json"
    stage = ShardedStage(
        name="pairs",
        source=f"{folder}/samples",
        source_schema=schemas.SAMPLES,
        target=Table(f"{folder}/pairs", schemas.PAIRS, f"{folder}/errors"),
        stage_class=build,
        arguments={"notes": notes, "config": config, "model_ref": config.captioner.ref, "round_number": 1},
        resources=config.generate.resources,
        attempts=f"{folder}/attempts",
        shards_in_flight=shards_in_flight(config),
    )
    watch = DriverWatch()
    with watch.watching():
        run_shards([stage], board, Counts(images), lambda _: None)
    manifest = total_manifest(stage.name, stage.target, 0.0)
    if manifest.rows_out != images:
        raise SystemExit(f"{manifest.rows_out} rows of {images} images")
    figures: dict[str, float] = json.loads(Path(notes).read_text(encoding="utf-8"))
    figures["worker_cpu_seconds_an_image"] = figures["worker_cpu_seconds"] / images
    return {**figures, "device_seconds": manifest.device_seconds, **watch.figures}


if __name__ == "__main__":
    main()

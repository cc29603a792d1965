"""How long the stages of a run take on which hardware: measured where it was measured, else estimated. Pure.

An estimate is a roofline: decoding reads weights, keys and values at a share of the memory's bandwidth; prefill,
CLIP and training compute at a share of the arithmetic's peak. No share has been measured yet: ``ESTIMATED`` holds what
well-tuned engines reach, and every estimate says that it is one. ``benchmarks/gpu/check.py`` measures the shares of a
GPU (``shares`` in its result); they belong into its row of ``GPUS``, with the date in ``Shares.known``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jsfree.config import Resources, RunConfig
from jsfree.decoding.workload import Workload
from jsfree.errors import ConfigError
from jsfree.sizing import memory
from jsfree.sizing.footprint import BYTES
from jsfree.sizing.memory import Lengths
from jsfree.sizing.shapes import LlavaShape
from jsfree.sizing.work import Work

GB, TERA = 1e9, 1e12
UTILISATION = 0.92
"""Share of the slots that hold a caption (docs/operations.md)."""
CLIP_FLOPS = 4e11
"""ViT-L/14 at 336 pixels, an image and the sentences of two captions."""
READ_SECONDS = 0.02
"""To read, decode and scale a photograph, on one CPU core."""
START_SECONDS, LOAD_BYTES_A_SECOND = 30.0, 1e9
"""A replica's processes and imports; reading weights from a local disk."""


@dataclass(frozen=True)
class Shares:
    """The shares of a GPU's data sheet that stages reach, in (0, 1]."""

    bandwidth: float
    """Decoding, of the memory's bandwidth; the others are of the arithmetic's peak."""
    prefill: float
    training: float
    clip: float
    known: str
    """How: shown beside every time that follows from them."""


ESTIMATED = Shares(bandwidth=0.8, prefill=0.5, training=0.35, clip=0.3, known="estimated (roofline)")


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, from its maker's data sheet: bytes, bytes a second, and dense bfloat16 operations a second."""

    memory: float
    bandwidth: float
    flops: float
    names: tuple[str, ...]
    """How torch and Ray name it, in lower case, as a part of the name."""
    bf16: bool = True
    """Whether it computes in bfloat16; the operations of those that do not are float16's."""
    shares: Shares = ESTIMATED


GPUS = {
    "t4": Gpu(16 * GB, 0.32 * TERA, 65 * TERA, ("t4",), bf16=False),
    "v100-16g": Gpu(16 * GB, 0.9 * TERA, 125 * TERA, ("v100",), bf16=False),
    "v100-32g": Gpu(32 * GB, 0.9 * TERA, 125 * TERA, ("v100 32gb", "v100 32g"), bf16=False),
    "a10g": Gpu(24 * GB, 0.6 * TERA, 70 * TERA, ("a10g",)),
    "l4": Gpu(24 * GB, 0.3 * TERA, 121 * TERA, ("l4",)),
    "l40": Gpu(48 * GB, 0.864 * TERA, 181 * TERA, ("l40",)),
    "l40s": Gpu(48 * GB, 0.864 * TERA, 362 * TERA, ("l40s",)),
    "a100-40g": Gpu(40 * GB, 1.555 * TERA, 312 * TERA, ("a100 40gb", "a100 40g")),
    "a100-80g": Gpu(80 * GB, 2.039 * TERA, 312 * TERA, ("a100",)),
    "h100-80g": Gpu(80 * GB, 3.35 * TERA, 989 * TERA, ("h100",)),
    "h200": Gpu(141 * GB, 4.8 * TERA, 989 * TERA, ("h200",)),
    "b200": Gpu(180 * GB, 7.7 * TERA, 2250 * TERA, ("b200",)),
}


@dataclass(frozen=True)
class Measured:
    """Rows that one core did in a second, and where that stands."""

    rows_a_second: float
    source: str


@dataclass(frozen=True)
class StageTime:
    """A stage of all rounds: wall time, what its devices cost together, and how that is known."""

    stage: str
    work: str
    devices: str
    seconds: float | None
    device_seconds: float | None
    known: str


def gpu_named(name: str) -> Gpu:
    """A kind of GPU by its name here, or by that of torch or Ray.

    Raises:
        ConfigError: it is not in the table.
    """
    words = set(re.split(r"[-_ ]", name.lower()))
    found = [(len(each.split()), gpu) for gpu in GPUS.values() for each in gpu.names if set(each.split()) <= words]
    if not found:
        raise ConfigError(f"no GPU {name!r} is known here", f"choose one of {', '.join(GPUS)}")
    return max(found, key=lambda each: each[0])[1]


def stage_times(
    config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu | None, slots: int
) -> list[StageTime]:
    """Every stage's time. Of stages without GPUs only MiniWorld's rates are known.

    Args:
        gpu: what stages with GPUs get.
        slots: captions that a replica of stage 1 decodes together on it; 0 if it does not fit.
    """
    on_gpu = {} if gpu is None else _on_gpu(config, work, shape, lengths, gpu, slots)
    on_cpu = _on_cpu(config, work)
    left_out = {"generate"} if config.imported is not None else set()
    left_out |= {"score"} if config.score.with_generation else set()
    generate, score, train = config.generate.resources, config.score.resources, config.train.resources
    asked = {"generate": generate, "score": score, "train": train, "evaluate": generate}
    return [
        on_gpu[stage] if stage in on_gpu and resources.gpus else on_cpu[stage]
        for stage, resources in asked.items()
        if stage not in left_out
    ]


def _on_gpu(
    config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu, slots: int
) -> dict[str, StageTime]:
    generate, score, train = config.generate.resources, config.score.resources, config.train.resources
    load = BYTES[config.captioner.dtype] * memory.parameters(shape).total / LOAD_BYTES_A_SECOND + START_SECONDS
    captioning = caption_seconds(config, work, shape, lengths, gpu, slots) if slots else None
    evaluating = _evaluation_seconds(config, work, shape, lengths, gpu, slots) if slots else None
    scoring = score_seconds(work.images, config, gpu)
    training = train_seconds(config, work, shape, lengths, gpu)
    steps = f"{work.rounds * work.steps:,} steps"
    starts, known = work.rounds * load, gpu.shares.known
    return {
        "generate": _timed("generate", f"{work.captions:,} captions", generate, captioning, starts, known),
        "score": _timed("score", f"{work.captions:,} captions", score, scoring, work.rounds * START_SECONDS, known),
        "train": _timed("train", f"{work.rounds * work.pairs:,} pairs, {steps}", train, training, starts, known),
        "evaluate": _timed("evaluate", f"{work.evaluated:,} captions", generate, evaluating, work.rounds * load, known),
    }


def _timed(stage: str, what: str, resources: Resources, seconds: float | None, start: float, known: str) -> StageTime:
    """A stage whose work takes one GPU so many seconds, and that many more to start."""
    replicas, gpus = resources.replicas, resources.gpus
    devices = f"{replicas} x {gpus:g} GPU"
    if seconds is None:
        return StageTime(stage, what, devices, None, None, "the captioner does not fit")
    # Several GPUs of a replica hold its layers and take turns; a part of a GPU has its part of the speed.
    wall = seconds / (replicas * min(1.0, gpus or 1.0)) + start
    return StageTime(stage, what, devices, wall, wall * replicas * gpus, known)


def caption_seconds(config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu, slots: int) -> float:
    """One replica's time for all pairs: prefills, and decoding steps that read weights, keys and values."""
    mixed = Workload.for_pairs(config.generate).dual_path_share
    prefill = work.images * _prefill_seconds(shape, lengths, gpu)
    return prefill + _steps_seconds(config, shape, lengths, gpu, slots, mixed, work.captions, 0.6)


def _evaluation_seconds(
    config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu, slots: int
) -> float:
    """The same for captions of evaluation, each of an image of its own, with one path; and their CLIP scores."""
    prefill = work.evaluated * _prefill_seconds(shape, lengths, gpu)
    steps = _steps_seconds(config, shape, lengths, gpu, slots, 0.0, work.evaluated, 1.0)
    return prefill + steps + score_seconds(work.evaluated, config, gpu)


def _prefill_seconds(shape: LlavaShape, lengths: Lengths, gpu: Gpu) -> float:
    return 2 * memory.parameters(shape).total * lengths.prefix / (gpu.shares.prefill * gpu.flops)


def _steps_seconds(
    config: RunConfig,
    shape: LlavaShape,
    lengths: Lengths,
    gpu: Gpu,
    slots: int,
    mixed: float,
    captions: int,
    images: float,
) -> float:
    each, keys = BYTES[config.captioner.dtype], memory.keys_of(shape, config.captioner.dtype)
    own = slots * (1 + mixed) * lengths.caption / 2
    read = each * memory.parameters(shape).total + keys.token_bytes * (images * slots * lengths.prefix + own)
    steps = captions * lengths.caption / (slots * UTILISATION)
    return steps * read / (gpu.shares.bandwidth * gpu.bandwidth)


def score_seconds(images: int, config: RunConfig, gpu: Gpu) -> float:
    reading = READ_SECONDS / max(1.0, config.score.resources.cpus)
    return images * max(reading, CLIP_FLOPS / (gpu.shares.clip * gpu.flops))


def train_seconds(config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu) -> float:
    """Operations a position and weight: 2 forward, 2 or 4 backward, 2 for what checkpointing computes again; and once
    2 for the reference log-probabilities."""
    train = config.train
    passes = (4 if train.lora is not None else 6) + (2 if train.gradient_checkpointing else 0)
    positions = lengths.prefix + 2 * lengths.caption
    operations = memory.parameters(shape).total * positions * work.pairs * (passes * train.epochs + 2)
    return work.rounds * operations / (gpu.shares.training * gpu.flops)


DEMO = "make demo on two cores, 2026-11-22"
MINIWORLD = {
    "generate": Measured(44, DEMO),
    "score": Measured(329, DEMO),
    "train": Measured(64, DEMO),
    "evaluate": Measured(65, DEMO),
}
"""Images, pairs and captions a second of a replica on a core, by ``device_seconds`` in the demo's ``run.json``."""


def _on_cpu(config: RunConfig, work: Work) -> dict[str, StageTime]:
    known = MINIWORLD if config.captioner.ref.startswith("miniworld:") else {}
    generate, score, train = config.generate.resources, config.score.resources, config.train.resources
    steps = f"{work.rounds * work.steps:,} steps"
    asked = {
        "generate": (work.images, f"{work.captions:,} captions", generate, work.rounds),
        "score": (work.images, f"{work.captions:,} captions", score, work.rounds),
        "train": (work.rounds * work.pairs * config.train.epochs, steps, train, work.rounds),
        "evaluate": (work.evaluated, f"{work.evaluated:,} captions", generate, work.rounds),
    }
    rows = {}
    for stage, (count, what, resources, starts) in asked.items():
        devices, rate = f"{resources.replicas} x {resources.cpus:g} CPU", known.get(stage)
        if rate is None:
            rows[stage] = StageTime(stage, what, devices, None, None, "unknown: no rate of this model on CPUs")
            continue
        wall = count / rate.rows_a_second / resources.replicas + starts * START_SECONDS
        cost = wall * resources.replicas * resources.cpus
        rows[stage] = StageTime(stage, what, devices, wall, cost, f"measured ({rate.source})")
    return rows

"""How long the stages of a run take on which hardware: measured where it was measured, else estimated. Pure.

An estimate is a roofline: decoding reads weights, keys and values at a share of the memory's bandwidth; prefill,
CLIP and training compute at a share of the arithmetic's peak. The shares were fitted to nothing of ours: no GPU was at
hand, so they are what well-kept engines reach, and every estimate says that it is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from jsfree.config import Resources, RunConfig
from jsfree.dpo.footprint import BYTES
from jsfree.errors import ConfigError
from jsfree.preflight import memory
from jsfree.preflight.memory import Lengths
from jsfree.preflight.work import Work
from jsfree.shapes import LlavaShape

GB, TERA = 1e9, 1e12
OF_BANDWIDTH, OF_ARITHMETIC, OF_TRAINING, OF_CLIP = 0.8, 0.5, 0.35, 0.3
UTILISATION = 0.92
"""Share of the slots that hold a caption (docs/operations.md)."""
CLIP_FLOPS = 4e11
"""ViT-L/14 at 336 pixels, an image and the sentences of two captions."""
READ_SECONDS = 0.02
"""To read, decode and scale a photograph, on one CPU core."""
START_SECONDS, LOAD_BYTES_A_SECOND = 30.0, 1e9
"""A replica's processes and imports; reading weights from a local disk."""


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


GPUS = {
    "t4": Gpu(16 * GB, 0.32 * TERA, 65 * TERA, ("t4",), bf16=False),
    "v100-32g": Gpu(32 * GB, 0.9 * TERA, 125 * TERA, ("v100",), bf16=False),
    "a10g": Gpu(24 * GB, 0.6 * TERA, 70 * TERA, ("a10g",)),
    "l4": Gpu(24 * GB, 0.3 * TERA, 121 * TERA, ("l4",)),
    "l40s": Gpu(48 * GB, 0.864 * TERA, 362 * TERA, ("l40s",)),
    "a100-40g": Gpu(40 * GB, 1.555 * TERA, 312 * TERA, ("a100-40g", "a100-sxm4-40gb", "a100-pcie-40gb")),
    "a100-80g": Gpu(80 * GB, 2.039 * TERA, 312 * TERA, ("a100-80g", "a100-sxm4-80gb", "a100-pcie-80gb", "a100")),
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
    asked = name.lower().replace(" ", "-").removeprefix("nvidia-")
    if asked in GPUS:
        return GPUS[asked]
    found = [gpu for gpu in GPUS.values() if any(part in asked for part in gpu.names)]
    if not found:
        raise ConfigError(f"--gpu {name}: no such GPU is known here; choose one of {', '.join(GPUS)}")
    return max(found, key=lambda gpu: max(len(part) for part in gpu.names if part in asked))


def stage_times(config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu | None) -> list[StageTime]:
    """Every stage's time; ``gpu`` None is a CPU, for which only MiniWorld's rates are known."""
    if gpu is None:
        return _on_cpu(config, work)
    slots = memory.slots_that_fit(shape, config, lengths, int(gpu.memory))
    generate, score, train = config.generate.resources, config.score.resources, config.train.resources
    load = BYTES[config.captioner.dtype] * memory.parameters(shape).total / LOAD_BYTES_A_SECOND + START_SECONDS
    captioning = _caption_seconds(config, work, shape, lengths, gpu, slots) if slots else None
    evaluating = _evaluation_seconds(config, work, shape, lengths, gpu, slots) if slots else None
    scoring = _score_seconds(work.images, config, gpu)
    training = _train_seconds(config, work, shape, lengths, gpu)
    steps = f"{work.rounds * work.steps:,} steps"
    starts = work.rounds * load
    rows = [
        _timed("generate", f"{work.captions:,} captions", generate, captioning, starts),
        _timed("score", f"{work.captions:,} captions", score, scoring, work.rounds * START_SECONDS),
        _timed("train", f"{work.rounds * work.pairs:,} pairs, {steps}", train, training, starts),
        _timed("evaluate", f"{work.evaluated:,} captions", generate, evaluating, work.rounds * load),
    ]
    left_out = {"generate"} if config.imported is not None else set()
    left_out |= {"score"} if config.score.with_generation else set()
    return [row for row in rows if row.stage not in left_out]


def _timed(stage: str, what: str, resources: Resources, seconds: float | None, start: float) -> StageTime:
    """A stage whose work takes one replica so many seconds, and that many more to start."""
    replicas = resources.replicas
    devices = f"{replicas} x {resources.gpus:g} GPU"
    if seconds is None:
        return StageTime(stage, what, devices, None, None, "the captioner does not fit")
    wall = seconds / replicas + start
    return StageTime(stage, what, devices, wall, wall * replicas * resources.gpus, "estimated (roofline)")


def _caption_seconds(config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu, slots: int) -> float:
    """One replica's time for all pairs: prefills, and decoding steps that read weights, keys and values."""
    mixed = memory.decoding_shape(config).mixed
    prefill = work.images * _prefill_seconds(shape, lengths, gpu)
    return prefill + _steps_seconds(config, shape, lengths, gpu, slots, mixed, work.captions, 0.6)


def _evaluation_seconds(
    config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu, slots: int
) -> float:
    """The same for captions of evaluation, each of an image of its own, with one path; and their CLIP scores."""
    prefill = work.evaluated * _prefill_seconds(shape, lengths, gpu)
    steps = _steps_seconds(config, shape, lengths, gpu, slots, 0.0, work.evaluated, 1.0)
    return prefill + steps + _score_seconds(work.evaluated, config, gpu)


def _prefill_seconds(shape: LlavaShape, lengths: Lengths, gpu: Gpu) -> float:
    return 2 * memory.parameters(shape).total * lengths.prefix / (OF_ARITHMETIC * gpu.flops)


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
    return steps * read / (OF_BANDWIDTH * gpu.bandwidth)


def _score_seconds(images: int, config: RunConfig, gpu: Gpu) -> float:
    reading = READ_SECONDS / max(1.0, config.score.resources.cpus)
    return images * max(reading, CLIP_FLOPS / (OF_CLIP * gpu.flops))


def _train_seconds(config: RunConfig, work: Work, shape: LlavaShape, lengths: Lengths, gpu: Gpu) -> float:
    """Operations a position and weight: 2 forward, 2 or 4 backward, 2 for what checkpointing computes again; and once
    2 for the reference log-probabilities."""
    train = config.train
    passes = (4 if train.lora is not None else 6) + (2 if train.gradient_checkpointing else 0)
    positions = lengths.prefix + 2 * lengths.caption
    operations = memory.parameters(shape).total * positions * work.pairs * (passes * train.epochs + 2)
    return work.rounds * operations / (OF_TRAINING * gpu.flops)


MINIWORLD: dict[str, Measured] = {}


def _on_cpu(config: RunConfig, work: Work) -> list[StageTime]:
    known = config.captioner.ref.startswith("miniworld:")
    generate, score, train = config.generate.resources, config.score.resources, config.train.resources
    asked = {
        "generate": (work.images, f"{work.captions:,} captions", generate),
        "score": (work.images, f"{work.captions:,} captions", score),
        "train": (work.rounds * work.pairs * config.train.epochs, f"{work.rounds * work.steps:,} steps", train),
        "evaluate": (work.evaluated, f"{work.evaluated:,} captions", generate),
    }
    rows = []
    for stage, (count, what, resources) in asked.items():
        devices = f"{resources.replicas} x {resources.cpus:g} CPU"
        rate = MINIWORLD.get(stage) if known else None
        if rate is None:
            rows.append(StageTime(stage, what, devices, None, None, "unknown: no rate of this model on CPUs"))
            continue
        seconds = count / rate.rows_a_second
        wall = seconds / resources.replicas
        rows.append(StageTime(stage, what, devices, wall, seconds * resources.cpus, f"measured ({rate.source})"))
    return rows

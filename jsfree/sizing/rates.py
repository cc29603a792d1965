"""Time of each stage on given hardware: measured rates where there are any, else estimates. Pure functions.

Estimates are rooflines: decoding reads weights, keys and values at a fraction of the peak memory bandwidth; prefill,
CLIP and training compute at a fraction of the peak arithmetic. No fraction has been measured yet: ``ESTIMATED`` holds
what well-tuned engines reach, and every estimate is marked as one. ``benchmarks/gpu/check.py`` measures the fractions
of a GPU (``shares`` in its result), to be entered into its row of ``GPUS`` with the date in ``Shares.known``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jsfree.config import ClipModel, Resources, RunConfig
from jsfree.decoding.workload import Workload as DecodingWorkload
from jsfree.errors import ConfigError
from jsfree.sizing import memory
from jsfree.sizing.footprint import BYTES
from jsfree.sizing.memory import Lengths
from jsfree.sizing.scorers import scorer_shape
from jsfree.sizing.shapes import CaptionerShape
from jsfree.sizing.workload import Workload

GB, TERA = 1e9, 1e12
UTILISATION = 0.92
"""Share of the slots that hold a caption (docs/operations.md)."""
READ_SHARE = 0.8
"""Share of the images held that a decoding step reads; the others wait for their next caption."""
JUDGE_TOKENS = 2.0
"""Tokens of the questions about a caption's sentences (``score.judge: captioner``), per token of the caption."""
JUDGE_COST = 4.0
"""Time of MiniWorld's captioner as judge on a CPU, relative to CLIP's (docs/log.md, 2026-11-26)."""
READ_SECONDS = 0.02
"""Time to read, decode and scale a photograph on one CPU core."""
START_SECONDS, LOAD_BYTES_A_SECOND = 30.0, 1e9
"""Start of a replica's processes and imports; rate of reading weights from a local disk."""


@dataclass(frozen=True)
class Shares:
    """Fractions of a GPU's peak rates that stages reach, in (0, 1]."""

    bandwidth: float
    """Decoding, as a fraction of the peak bandwidth; the others are fractions of the peak arithmetic."""
    prefill: float
    training: float
    clip: float
    known: str
    """Their source, shown with every time computed from them."""


ESTIMATED = Shares(bandwidth=0.8, prefill=0.5, training=0.35, clip=0.3, known="estimated (roofline)")


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU by its data sheet: memory in bytes, bandwidth in bytes/s, dense bfloat16 operations/s."""

    memory: float
    bandwidth: float
    flops: float
    names: tuple[str, ...]
    """Parts of the names that torch and Ray use, in lower case."""
    bf16: bool = True
    """Whether it has bfloat16 arithmetic; otherwise ``flops`` are of float16."""
    shares: Shares = ESTIMATED


GPUS = {
    "t4": GpuKind(16 * GB, 0.32 * TERA, 65 * TERA, ("t4",), bf16=False),
    "v100-16g": GpuKind(16 * GB, 0.9 * TERA, 125 * TERA, ("v100",), bf16=False),
    "v100-32g": GpuKind(32 * GB, 0.9 * TERA, 125 * TERA, ("v100 32gb", "v100 32g"), bf16=False),
    "a10g": GpuKind(24 * GB, 0.6 * TERA, 70 * TERA, ("a10g",)),
    "l4": GpuKind(24 * GB, 0.3 * TERA, 121 * TERA, ("l4",)),
    "l40": GpuKind(48 * GB, 0.864 * TERA, 181 * TERA, ("l40",)),
    "l40s": GpuKind(48 * GB, 0.864 * TERA, 362 * TERA, ("l40s",)),
    "a100-40g": GpuKind(40 * GB, 1.555 * TERA, 312 * TERA, ("a100 40gb", "a100 40g")),
    "a100-80g": GpuKind(80 * GB, 2.039 * TERA, 312 * TERA, ("a100",)),
    "h100-80g": GpuKind(80 * GB, 3.35 * TERA, 989 * TERA, ("h100",)),
    "h200": GpuKind(141 * GB, 4.8 * TERA, 989 * TERA, ("h200",)),
    "b200": GpuKind(180 * GB, 7.7 * TERA, 2250 * TERA, ("b200",)),
}


@dataclass(frozen=True)
class Measured:
    """Rows per second of one core, and the source of the measurement."""

    rows_a_second: float
    source: str


@dataclass(frozen=True)
class StageTime:
    """Time of a stage over all rounds: its work, its devices, wall seconds, device seconds, and their source.

    The seconds are None if they are unknown.
    """

    stage: str
    work: str
    devices: str
    seconds: float | None
    device_seconds: float | None
    known: str


def gpu_named(name: str) -> GpuKind:
    """A kind of GPU by its key in ``GPUS`` or its name in torch or Ray.

    Raises:
        ConfigError: it is not in the table.
    """
    words = set(re.split(r"[-_ ]", name.lower()))
    matches = [(len(part.split()), gpu) for gpu in GPUS.values() for part in gpu.names if set(part.split()) <= words]
    if not matches:
        raise ConfigError(f"unknown GPU {name!r}", f"choose one of {', '.join(GPUS)}")
    return max(matches, key=lambda match: match[0])[1]


def stage_times(
    config: RunConfig,
    work: Workload,
    shape: CaptionerShape,
    lengths: Lengths,
    gpu: GpuKind | None,
    slots: int,
    evaluation_slots: int | None = None,
) -> list[StageTime]:
    """Time of every stage; on CPUs only MiniWorld's rates are known.

    Args:
        gpu: the GPU of stages that use GPUs.
        slots: captions of pairs that a replica decodes together on it; 0 if the captioner does not fit.
        evaluation_slots: the same for captions of the evaluation; by default ``slots``.
    """
    evaluated_together = slots if evaluation_slots is None else evaluation_slots
    on_gpu = {} if gpu is None else _on_gpu(config, work, shape, lengths, gpu, slots, evaluated_together)
    on_cpu = _on_cpu(config, work)
    skipped = {"generate"} if config.imported is not None else set()
    skipped |= {"score"} if config.score.with_generation and config.imported is None else set()
    generate, train = config.generate.resources, config.train.resources
    stages = {"generate": generate, "score": _scoring_resources(config), "train": train, "evaluate": generate}
    return [
        on_gpu[stage] if stage in on_gpu and resources.gpus else on_cpu[stage]
        for stage, resources in stages.items()
        if stage not in skipped
    ]


def _on_gpu(
    config: RunConfig,
    work: Workload,
    shape: CaptionerShape,
    lengths: Lengths,
    gpu: GpuKind,
    slots: int,
    evaluation_slots: int,
) -> dict[str, StageTime]:
    generate, score, train = config.generate.resources, _scoring_resources(config), config.train.resources
    load = replica_start_seconds(config, shape)
    captioning = caption_seconds(config, work, shape, lengths, gpu, slots) if slots else None
    evaluating = _evaluation_seconds(config, work, shape, lengths, gpu, evaluation_slots) if evaluation_slots else None
    by_captioner, scorers = config.score.judge == "captioner", config.clip.scorers
    scoring = (
        judge_seconds(work, shape, lengths, gpu) if by_captioner else score_seconds(work.images, config, gpu, scorers)
    )
    scoring_start = load if by_captioner else START_SECONDS
    training = train_seconds(config, work, shape, lengths, gpu)
    steps = f"{work.rounds * work.steps:,} steps"
    starts, known = work.rounds * load, gpu.shares.known
    return {
        "generate": _timed("generate", f"{work.captions:,} captions", generate, captioning, starts, known),
        "score": _timed("score", _scored(config, work), score, scoring, work.rounds * scoring_start, known),
        "train": _timed("train", f"{work.rounds * work.pairs:,} pairs, {steps}", train, training, starts, known),
        "evaluate": _timed("evaluate", f"{work.evaluated:,} captions", generate, evaluating, work.rounds * load, known),
    }


def _timed(stage: str, what: str, resources: Resources, seconds: float | None, start: float, known: str) -> StageTime:
    """Time of a stage whose work takes one GPU ``seconds``, plus ``start`` seconds to start."""
    replicas, gpus = resources.replicas, resources.gpus
    devices = f"{replicas} x {gpus:g} GPU"
    if seconds is None:
        return StageTime(stage, what, devices, None, None, "the captioner does not fit")
    # The GPUs of one replica hold different layers and take turns; a fraction of a GPU has that fraction of its speed.
    wall = seconds / (replicas * min(1.0, gpus or 1.0)) + start
    return StageTime(stage, what, devices, wall, wall * replicas * gpus, known)


def caption_seconds(
    config: RunConfig, work: Workload, shape: CaptionerShape, lengths: Lengths, gpu: GpuKind, slots: int
) -> float:
    """Seconds that one replica takes for all pairs: prefills, and decoding steps that read weights, keys and values."""
    workload = DecodingWorkload.for_pairs(config.generate)
    prefill = work.images * workload.views * prefill_seconds(shape, lengths, gpu)
    paths = workload.views + workload.dual_path_share
    prefixes = READ_SHARE * workload.images_per_slot * workload.views
    return prefill + _steps_seconds(config, shape, lengths, gpu, slots, paths, work.captions, prefixes)


def _evaluation_seconds(
    config: RunConfig, work: Workload, shape: CaptionerShape, lengths: Lengths, gpu: GpuKind, slots: int
) -> float:
    """The same for evaluation captions, one per image and by the conditional path, and their CLIP scores."""
    views = _evaluation_views(config)
    prefill = work.evaluated * views * prefill_seconds(shape, lengths, gpu)
    steps = _steps_seconds(config, shape, lengths, gpu, slots, views, work.evaluated, views)
    return prefill + steps + score_seconds(work.evaluated, config, gpu, [config.clip])


def _evaluation_views(config: RunConfig) -> float:
    """Views of an image in an evaluation caption, on average over the modes."""
    counts = [mode.views.count for mode in config.evaluate.modes.values()]
    return sum(counts) / len(counts) if counts else 1.0


def replica_start_seconds(config: RunConfig, shape: CaptionerShape) -> float:
    """Seconds until a replica has started its processes and read the captioner's weights."""
    return START_SECONDS + BYTES[config.captioner.dtype] * memory.parameters(shape).total / LOAD_BYTES_A_SECOND


def prefill_seconds(shape: CaptionerShape, lengths: Lengths, gpu: GpuKind) -> float:
    """Seconds of one prefill of image and prompt."""
    return 2 * memory.parameters(shape).total * lengths.prefix / (gpu.shares.prefill * gpu.flops)


def _steps_seconds(
    config: RunConfig,
    shape: CaptionerShape,
    lengths: Lengths,
    gpu: GpuKind,
    slots: int,
    paths: float,
    captions: int,
    prefixes: float,
) -> float:
    """Seconds of decoding steps; ``paths`` and ``prefixes`` of images are averages per caption."""
    width, keys = BYTES[config.captioner.dtype], memory.keys_of(shape, config.captioner.dtype)
    own = slots * paths * lengths.caption / 2
    read = width * memory.parameters(shape).total + keys.token_bytes * (prefixes * slots * lengths.prefix + own)
    steps = captions * lengths.caption / (slots * UTILISATION)
    return steps * read / (gpu.shares.bandwidth * gpu.bandwidth)


def score_seconds(images: int, config: RunConfig, gpu: GpuKind, scorers: Sequence[ClipModel]) -> float:
    """Seconds that one replica takes to score two captions of each image, by reading or by arithmetic."""
    reading = READ_SECONDS / max(1.0, config.score.resources.cpus)
    operations = sum(scorer_shape(scorer).pair_flops for scorer in scorers)
    return images * max(reading, operations / (gpu.shares.clip * gpu.flops))


def judge_seconds(work: Workload, shape: CaptionerShape, lengths: Lengths, gpu: GpuKind) -> float:
    """Seconds that one replica of the captioner takes to judge all sentences: it prefills images and questions."""
    positions = work.images * lengths.prefix + JUDGE_TOKENS * work.captions * lengths.caption
    return 2 * memory.parameters(shape).total * positions / (gpu.shares.prefill * gpu.flops)


def _scoring_resources(config: RunConfig) -> Resources:
    """The resources with which pairs are scored: those of the judge (``score.judge``)."""
    return config.generate.resources if config.score.judge == "captioner" else config.score.resources


def _scored(config: RunConfig, work: Workload) -> str:
    return f"{work.captions:,} captions, by {config.score.judge_name}"


def train_seconds(config: RunConfig, work: Workload, shape: CaptionerShape, lengths: Lengths, gpu: GpuKind) -> float:
    """Seconds of one GPU for all rounds.

    Operations per position and weight: 2 forward, 2 (LoRA) or 4 backward, 2 for recomputation under checkpointing, and
    2 once for the reference log-probabilities.
    """
    train = config.train
    passes = (4 if train.lora is not None else 6) + (2 if train.gradient_checkpointing else 0)
    positions = lengths.prefix + len(config.trained_captions) * lengths.caption
    operations = memory.parameters(shape).total * positions * work.pairs * (passes * train.epochs + 2)
    return work.rounds * operations / (gpu.shares.training * gpu.flops)


DEMO = "make demo on two cores, 2026-11-22"
MINIWORLD = {
    "generate": Measured(44, DEMO),
    "score": Measured(329, DEMO),
    "train": Measured(64, DEMO),
    "evaluate": Measured(65, DEMO),
}
"""Rows per second of a replica on one core: images, pairs or captions over the demo's ``device_seconds``."""
VIEW_COST = 0.35
"""Time of a further view of the image on a CPU, as a share of decoding with one view (``benchmarks/views.py``)."""


def _on_cpu(config: RunConfig, work: Workload) -> dict[str, StageTime]:
    rates = MINIWORLD if config.captioner.ref.startswith("miniworld:") else {}
    generate, score, train = config.generate.resources, _scoring_resources(config), config.train.resources
    steps = f"{work.rounds * work.steps:,} steps"
    stages = {
        "generate": (work.images, f"{work.captions:,} captions", generate, work.rounds),
        "score": (work.images, _scored(config, work), score, work.rounds),
        "train": (work.rounds * work.pairs * config.train.epochs, steps, train, work.rounds),
        "evaluate": (work.evaluated, f"{work.evaluated:,} captions", generate, work.rounds),
    }
    slowdowns = {
        "generate": 1 + VIEW_COST * (config.generate.decoding.views.count - 1),
        "evaluate": 1 + VIEW_COST * (_evaluation_views(config) - 1),
        "score": JUDGE_COST if config.score.judge == "captioner" else float(len(config.clip.scorers)),
    }
    rows = {}
    for stage, (count, what, resources, starts) in stages.items():
        devices, rate = f"{resources.replicas} x {resources.cpus:g} CPU", rates.get(stage)
        if rate is None:
            rows[stage] = StageTime(stage, what, devices, None, None, "unknown: this model was not measured on CPUs")
            continue
        wall = slowdowns.get(stage, 1.0) * count / rate.rows_a_second / resources.replicas + starts * START_SECONDS
        cost = wall * resources.replicas * resources.cpus
        rows[stage] = StageTime(stage, what, devices, wall, cost, f"measured ({rate.source})")
    return rows

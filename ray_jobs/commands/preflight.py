"""All checks of a configuration, in order: ``jsfree preflight`` and ``jsfree plan``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jsfree import config as configuration
from jsfree.checks import data, devices, findings, models, storage
from jsfree.checks.devices import Device
from jsfree.checks.findings import Finding, ok, run_check
from jsfree.checks.libraries import check_libraries
from jsfree.checks.settings import check_settings
from jsfree.config import Imported, RunConfig, Source
from jsfree.errors import ConfigError, JsfreeError, StorageError
from jsfree.evaluation.rounds_stop import last_round
from jsfree.images.drawing import DrawnImages
from jsfree.images.sources import SourceSummary, images_per_round, summarize_source
from jsfree.judge.settings import JudgeSettings, read_prices
from jsfree.models.contents import CAPTIONER
from jsfree.run.run import Run
from jsfree.run.stages import STAGES
from jsfree.sizing import footprint, memory, rates, workload
from jsfree.sizing.benchmarks import BenchmarkCost, benchmark_costs
from jsfree.sizing.memory import Lengths
from jsfree.sizing.published import published_shape
from jsfree.sizing.rates import StageTime
from jsfree.sizing.shapes import CaptionerShape
from jsfree.sizing.workload import Workload
from ray_jobs.cluster.capacity import ROUNDING
from ray_jobs.cluster.machines import CLUSTER, Machines, stage_resources
from ray_jobs.cluster.session import Cluster
from ray_jobs.pipeline import with_models


@dataclass
class Preflight:
    """The findings, and the estimated memory and time."""

    findings: list[Finding] = field(default_factory=list)
    times: list[StageTime] = field(default_factory=list)
    training: list[tuple[str, float, bool]] = field(default_factory=list)
    """Training modes: name, GB per worker, whether it fits."""
    benchmarks: list[BenchmarkCost] = field(default_factory=list)
    currency: str = ""
    """Currency of the costs of benchmarks; empty without a price table."""

    @property
    def works(self) -> bool:
        """Whether no check failed."""
        return findings.none_fails(self.findings)

    def as_json(self) -> dict[str, Any]:
        """The output of ``--json``."""
        return {
            "works": self.works,
            "findings": [finding.as_json() for finding in self.findings],
            "stages": [vars(time) for time in self.times],
            "training": [{"mode": name, "gb": size, "fits": fits} for name, size, fits in self.training],
            "benchmarks": [{**vars(cost), "currency": self.currency} for cost in self.benchmarks],
        }


def preflight(config: RunConfig) -> Preflight:
    """Run every check of a configuration, also after failures; leaves nothing in the run's folder.

    Finished stages of an existing run are not checked again.
    """
    result = Preflight()
    add = result.findings.extend
    add(run_check("libraries", "versions", lambda: check_libraries(config)))
    add(run_check("storage", "run folder", lambda: storage.check_folder(config), storage.REMEDY))
    remaining = remaining_stages(config)
    if not remaining:
        add([ok("stages", "remaining", "none: all rounds are done")])
        return result
    images = _Images()
    if "generate" in remaining:
        add(images.check_training(config))
    if "evaluate" in remaining:
        add(images.check(config, config.evaluate.source, "evaluate.source"))
    work = workload.workload_of(config, images.per_round(config), images.evaluated)
    if work.images:
        add(check_settings(config, work))
    checked = _Models(config)
    add(checked.check())
    with Cluster(config) as cluster:
        machines = Machines(cluster, remaining, work)
        add(run_check(CLUSTER, "resources", lambda: machines.check(checked.config)))
    if checked.shape is not None and checked.lengths is not None:
        add(run_check("memory", "captioner", lambda: _sizes(checked, result, work, machines, images)))
    return result


def remaining_stages(config: RunConfig) -> set[str]:
    """The stages that are not finished in every round of a run, up to that in which its stop rule ended it."""
    run = Run(config)
    try:
        rounds = range(1, last_round(run) + 1)
        return {
            name for name, stage in STAGES.items() if not all(run.round(number).exists(stage.mark) for number in rounds)
        }
    except StorageError:  # already a finding of the check of the run's folder
        return set(STAGES)


def _sizes(
    checked: _Models, result: Preflight, work: Workload, machines: Machines, images: _Images
) -> Iterator[Finding]:
    """Check memory and disk space, and estimate times, from the captioner's shape."""
    config, shape, lengths = checked.config, checked.shape, checked.lengths
    assert shape is not None
    assert lengths is not None
    slots = evaluation_slots = 0
    generating, training = (machines.device(section.resources) for section in (config.generate, config.train))
    if generating is not None:
        yield from devices.check_generation(config, shape, lengths, generating)
        slots, evaluation_slots = _slots(config, shape, lengths, generating)
    if training is not None and "train" in machines.remaining:
        yield from devices.check_training(config, shape, lengths, training)
        result.training = _ways(config, shape, lengths, training)
    train = config.train
    parameters = memory.parameters(shape, train.trained_layers, train.lora)
    dtype = config.captioner.dtype
    features = footprint.BYTES[dtype] * shape.feature_numbers
    needed = workload.disk_bytes(config, work, parameters, images.image_bytes, features)
    temporary = footprint.temporary_bytes(parameters, train.zero_stage, dtype, workload.max_checkpoints(config, work))
    yield from storage.check_disk_space(config, needed, temporary if "train" in machines.remaining else 0)
    if machines.gpu is not None or not machines.requests_gpus(config):
        result.times = rates.stage_times(config, work, shape, lengths, machines.gpu, slots, evaluation_slots)


def plan(config: RunConfig, gpu: str | None, judge: JudgeSettings | None = None) -> Preflight:
    """Estimate memory and time of a run on any hardware, without reading images or weights.

    Args:
        gpu: kind of GPU; by default the one that the configuration names, or CPUs if it requests no GPUs.
        judge: whose price table gives the cost of benchmarks with a judge.

    Raises:
        ConfigError: the GPU is unknown or not given, or the configuration has no number of images.
        ModelError: the captioner's shape is unknown.
    """
    images = config.source.count
    if images is None:
        raise ConfigError("source.count is null, so the number of images is unknown", "use --set source.count=N")
    requests_gpus = any(resources.gpus for resources in stage_resources(config).values())
    if gpu is not None and not requests_gpus:
        raise ConfigError(f"--gpu {gpu}: the configuration requests no GPUs", "set their number with --gpus")
    gpu = gpu or _named_gpu(config)
    kind = None if gpu is None else rates.gpu_named(gpu)
    shape, lengths = _shape_without_weights(config)
    work = workload.workload_of(config, images)
    cpu = devices.this_machine()
    planned = cpu if kind is None else Device(str(gpu), int(kind.memory), True)
    generating, training = (planned if section.resources.gpus else cpu for section in (config.generate, config.train))
    slots, evaluation_slots = _slots(config, shape, lengths, generating)
    result = Preflight()
    result.findings += check_settings(config, work)
    result.findings += devices.check_generation(config, shape, lengths, generating)
    result.findings += devices.check_training(config, shape, lengths, training)
    result.training = _ways(config, shape, lengths, training)
    result.times = rates.stage_times(config, work, shape, lengths, kind, slots, evaluation_slots)
    prices = None if judge is None or judge.prices is None else read_prices(judge.prices)
    price = None if judge is None or prices is None else prices.price_of(judge.model, str(judge.prices))
    result.currency = "" if prices is None else prices.currency
    result.benchmarks = benchmark_costs(config, shape, lengths, kind, evaluation_slots, price)
    return result


def _slots(config: RunConfig, shape: CaptionerShape, lengths: Lengths, device: Device) -> tuple[int, int]:
    """Captions of pairs, and of the evaluation mode that takes most memory, that a device decodes together."""
    capacity = devices.generation_capacity(config, device)
    fitting = memory.fitting_slots(shape, config, lengths, capacity.bytes, capacity.reserved)
    modes = [slots for section, slots in fitting.items() if section != "generate"]
    fewest = min(fitting.values())
    return fitting.get("generate", fewest), min(modes, default=fewest)


def _named_gpu(config: RunConfig) -> str | None:
    """The accelerator type of the first stage that names one; None if no stage requests GPUs."""
    requests = [resources for resources in stage_resources(config).values() if resources.gpus]
    named = next((resources.accelerator_type for resources in requests if resources.accelerator_type), None)
    if requests and named is None:
        raise ConfigError("the configuration does not name the kind of GPU", f"use --gpu: {', '.join(rates.GPUS)}")
    return named


def with_gpus(config: RunConfig, gpus: int) -> RunConfig:
    """The configuration with as many replicas of each stage as fit on ``gpus`` GPUs; stages run one after another.

    Raises:
        ConfigError: a training step cannot be divided among the workers.
    """
    sections = stage_resources(config)
    on_cpus = not any(resources.gpus for resources in sections.values())
    overrides = []
    for stage, resources in sections.items():
        share = resources.gpus or (1.0 if on_cpus else 0.0)
        if not share:
            continue
        replicas = gpus * int(1 / share + ROUNDING) if share < 1 else gpus // int(share)
        overrides += [f"{stage}.resources.replicas={max(1, replicas)}", f"{stage}.resources.gpus={share}"]
        overrides.append(f"{stage}.resources.min_replicas=null")
    return configuration.with_overrides(config, overrides)


def _ways(config: RunConfig, shape: CaptionerShape, lengths: Lengths, device: Device) -> list[tuple[str, float, bool]]:
    """The training modes with the memory of a worker, in GB, and whether it fits on the device."""
    available, dtype = devices.training_capacity(config, device), config.captioner.dtype
    captions = len(config.trained_captions)
    ways = []
    for name, train in memory.alternatives(config.train, on_cpu=not device.is_gpu):
        required = memory.training(shape, train, dtype, lengths, captions=captions, on_cpu=not device.is_gpu)
        size = required.total
        ways.append((name, size / devices.GB, size <= available))
    return ways


def _shape_without_weights(config: RunConfig) -> tuple[CaptionerShape, Lengths]:
    """The captioner's shape: known for published models, read from the configuration of others."""
    shape = published_shape(config.captioner.ref)
    if shape is not None:
        return shape, models.estimated_lengths(config, shape)
    with models.described(config) as model:
        return models.captioner_shape(model), models.lengths(config, model)


class _Models:
    """The checks of both models.

    Attributes:
        config: the configuration, with hub models pinned to a commit after ``check``.
        shape: the captioner's shape, if known after ``check``.
        lengths: its sequence lengths, if known after ``check``.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.shape: CaptionerShape | None = None
        self.lengths: Lengths | None = None

    def check(self) -> Iterator[Finding]:
        """Check CLIP, then the captioner."""
        with suppress(JsfreeError):  # the check of each model reports the error
            self.config = with_models(self.config)
        for scorer in self.config.clip.scorers:
            yield from run_check("models", "CLIP", partial(models.check_clip, self.config, scorer), models.REMEDY)
        yield from run_check("models", "captioner", self._captioner, models.REMEDY)

    def _captioner(self) -> Iterator[Finding]:
        config, ref = self.config, self.config.captioner.versioned_ref
        if models.is_elsewhere(ref, CAPTIONER, config.models):
            yield models.unchecked("captioner", ref)
            self.shape = published_shape(config.captioner.ref)
            self.lengths = None if self.shape is None else models.estimated_lengths(config, self.shape)
            return
        with models.described(config) as model:
            self.shape = models.captioner_shape(model)
            yield from models.check_captioner(config, model)
            self.lengths = models.lengths(config, model)


class _Images:
    """The checks of the images: reads a sample of each source."""

    def __init__(self) -> None:
        self._looks: dict[str, SourceSummary] = {}
        self._listed: dict[object, DrawnImages] = {}

    def check_training(self, config: RunConfig) -> Iterator[Finding]:
        """Check the images to train on, or the imported pairs."""
        if config.imported is None:
            return self.check(config, config.source, "source")
        return run_check(data.AREA, "imported", lambda: self._check_imported(config, config.imported))

    def _check_imported(self, config: RunConfig, settings: Imported | None) -> Iterator[Finding]:
        assert settings is not None
        look = data.sample_imported(settings)
        self._looks["source"] = SourceSummary(images=look.pairs, repeated=0, samples=look.samples)
        yield from data.check_imported(config, settings, look)

    def check(self, config: RunConfig, source: Source, name: str) -> Iterator[Finding]:
        """Check an image source."""

        def look() -> Iterator[Finding]:
            self._looks[name] = summarize_source(config, source, data.DECODED_IMAGES, self._listed)
            yield from data.check_source(config, source, name, self._looks[name])

        return run_check(data.AREA, name, look)

    def per_round(self, config: RunConfig) -> int:
        """Number of images of a round, or of imported pairs."""
        look = self._looks.get("source")
        available = 0 if look is None else look.images
        return available if config.imported is not None else images_per_round(config, available)

    @property
    def evaluated(self) -> int | None:
        """Number of evaluation images, if they were checked."""
        return self._looks["evaluate.source"].images if "evaluate.source" in self._looks else None

    @property
    def image_bytes(self) -> int:
        """Mean size of the images that are stored in the run's tables; 0 if they are stored by reference."""
        samples = self._looks["source"].samples if "source" in self._looks else []
        sizes = [len(sample["image"]["bytes"] or b"") for sample in samples]
        return sum(sizes) // max(1, len(sizes))


def broken(error: ConfigError) -> Preflight:
    """The result for a configuration that cannot be loaded: one failed check."""
    return Preflight([findings.from_error("settings", "values", error)])

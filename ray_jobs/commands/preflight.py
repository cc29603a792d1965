"""All checks of a configuration, in order, with what the Ray cluster has: ``jsfree preflight`` and ``jsfree plan``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jsfree import config as configuration
from jsfree.checks import data, devices, findings, models, places
from jsfree.checks.devices import Device
from jsfree.checks.findings import Finding, ok, run_check
from jsfree.checks.libraries import check_libraries
from jsfree.checks.settings import check_settings
from jsfree.config import Imported, RunConfig, Source
from jsfree.errors import ConfigError, JsfreeError, StorageError
from jsfree.images.drawing import Drawn
from jsfree.images.sources import Look, images_of_a_round, look_at
from jsfree.models.contents import CAPTIONER
from jsfree.run.run import Run
from jsfree.sizing import footprint, memory, rates, shapes
from jsfree.sizing import work as works_out
from jsfree.sizing.memory import Lengths
from jsfree.sizing.rates import StageTime
from jsfree.sizing.shapes import LlavaShape
from jsfree.sizing.work import Work
from ray_jobs.cluster.capacity import ROUNDING
from ray_jobs.cluster.machines import CLUSTER, Machines, asked_for
from ray_jobs.cluster.session import Cluster
from ray_jobs.pipeline import STAGES, with_models


@dataclass
class Preflight:
    """What was found, and what follows for memory, time and money."""

    findings: list[Finding] = field(default_factory=list)
    times: list[StageTime] = field(default_factory=list)
    training: list[tuple[str, float, bool]] = field(default_factory=list)
    """Ways to train: name, GB a worker, whether it fits."""

    @property
    def works(self) -> bool:
        """Whether nothing stands in the way."""
        return findings.none_fails(self.findings)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "works": self.works,
            "findings": [finding.as_json() for finding in self.findings],
            "stages": [vars(time) for time in self.times],
            "training": [{"mode": name, "gb": size, "fits": fits} for name, size, fits in self.training],
        }


def preflight(config: RunConfig) -> Preflight:
    """Every check of a configuration; none stops the others. Nothing is spent, and of a run's folder nothing stays.

    Of a run that is there, what is done is not looked at again.
    """
    result = Preflight()
    take = result.findings.extend
    take(run_check("libraries", "versions", lambda: check_libraries(config)))
    take(run_check("storage", "run folder", lambda: places.check_folder(config), places.REMEDY))
    left = stages_left(config)
    if not left:
        take([ok("stages", "left", "none: all rounds are done")])
        return result
    looks = _Looks()
    if "generate" in left:
        take(looks.training(config))
    if "evaluate" in left:
        take(looks.at(config, config.evaluate.source, "evaluate.source"))
    work = works_out.work_of(config, looks.images(config), looks.evaluated)
    if work.images:
        take(check_settings(config, work))
    known = _Models(config)
    take(known.check())
    with Cluster(config) as cluster:
        machines = Machines(cluster, left, work)
        take(run_check(CLUSTER, "resources", lambda: machines.check(known.config)))
    if known.shape is not None and known.lengths is not None:
        take(run_check("memory", "captioner", lambda: _sizes(known, result, work, machines, looks)))
    return result


def stages_left(config: RunConfig) -> set[str]:
    """Stages that are not done in some round of a run."""
    run, rounds = Run(config), range(1, config.rounds + 1)
    try:
        return {
            name for name, stage in STAGES.items() if not all(run.round(number).exists(stage.mark) for number in rounds)
        }
    except StorageError:  # what the check of the folder told already
        return set(STAGES)


def _sizes(known: _Models, result: Preflight, work: Work, machines: Machines, looks: _Looks) -> Iterator[Finding]:
    """Memory, disk and time, which follow from a captioner's shape."""
    config, shape, lengths = known.config, known.shape, known.lengths
    assert shape is not None
    assert lengths is not None
    slots = 0
    generating, training = (machines.device(section.resources) for section in (config.generate, config.train))
    if generating is not None:
        yield from devices.check_generation(config, shape, lengths, generating)
        room = devices.generation_room(config, generating)
        slots = memory.slots_that_fit(shape, config, lengths, room.bytes, room.beside)
    if training is not None and "train" in machines.left:
        yield from devices.check_training(config, shape, lengths, training)
        result.training = _ways(config, shape, lengths, training)
    train = config.train
    counted = memory.parameters(shape, train.trained_layers, train.lora)
    dtype = config.captioner.dtype
    features = footprint.BYTES[dtype] * shape.image_tokens * shape.vision.hidden
    needed = works_out.disk_bytes(config, work, counted, looks.image_bytes, features)
    passing = footprint.passing_bytes(counted, train.zero_stage, dtype, works_out.checkpoints(config, work))
    yield from places.check_disk(config, needed, passing if "train" in machines.left else 0)
    if machines.gpu is not None or not machines.asks_for_gpus(config):
        result.times = rates.stage_times(config, work, shape, lengths, machines.gpu, slots)


def plan(config: RunConfig, gpu: str | None) -> Preflight:
    """Memory, time and money of a run on hardware that need not be there; no image and no weights are touched.

    Args:
        gpu: kind of GPU; when omitted the one that the configuration names, or CPUs if it asks for no GPUs.

    Raises:
        ConfigError: the GPU is unknown or not told, or the number of images is not in the configuration.
        ModelError: the captioner's size is neither known nor to be found.
    """
    images = config.source.count
    if images is None:
        raise ConfigError("source.count is null, so how much there is to do is not known", "--set source.count=N")
    asking = any(resources.gpus for resources in asked_for(config).values())
    if gpu is not None and not asking:
        raise ConfigError(f"--gpu {gpu}: the configuration asks for no GPUs", "say how many with --gpus")
    gpu = gpu or _named_gpu(config)
    kind = None if gpu is None else rates.gpu_named(gpu)
    shape, lengths = _shape_without_weights(config)
    work = works_out.work_of(config, images)
    here = devices.this_machine()
    there = here if kind is None else Device(str(gpu), int(kind.memory), True)
    generating, training = (there if section.resources.gpus else here for section in (config.generate, config.train))
    room = devices.generation_room(config, generating)
    slots = memory.slots_that_fit(shape, config, lengths, room.bytes, room.beside)
    result = Preflight()
    result.findings += check_settings(config, work)
    result.findings += devices.check_generation(config, shape, lengths, generating)
    result.findings += devices.check_training(config, shape, lengths, training)
    result.training = _ways(config, shape, lengths, training)
    result.times = rates.stage_times(config, work, shape, lengths, kind, slots)
    return result


def _named_gpu(config: RunConfig) -> str | None:
    asking = [resources for resources in asked_for(config).values() if resources.gpus]
    named = next((resources.accelerator_type for resources in asking if resources.accelerator_type), None)
    if asking and named is None:
        raise ConfigError("the run asks for GPUs", f"say which with --gpu: {', '.join(rates.GPUS)}")
    return named


def with_gpus(config: RunConfig, gpus: int) -> RunConfig:
    """The configuration with as many replicas of each stage as so many GPUs take, one stage after another.

    Raises:
        ConfigError: training cannot be shared out among so many workers.
    """
    sections = {"generate": config.generate.resources, "score": config.score.resources, "train": config.train.resources}
    on_cpus = not any(resources.gpus for resources in sections.values())
    overrides = []
    for stage, resources in sections.items():
        each = resources.gpus or (1.0 if on_cpus else 0.0)
        if not each:
            continue
        replicas = gpus * int(1 / each + ROUNDING) if each < 1 else gpus // int(each)
        overrides += [f"{stage}.resources.replicas={max(1, replicas)}", f"{stage}.resources.gpus={each}"]
        overrides.append(f"{stage}.resources.min_replicas=null")
    return configuration.overridden(config, overrides)


def _ways(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> list[tuple[str, float, bool]]:
    """All ways to train, with what they take a worker."""
    room, dtype = devices.training_room(config, device), config.captioner.dtype
    found = []
    for name, train in memory.alternatives(config.train, on_cpu=not device.is_gpu):
        size = memory.training(shape, train, dtype, lengths, on_cpu=not device.is_gpu).total
        found.append((name, size / devices.GB, size <= room))
    return found


def _shape_without_weights(config: RunConfig) -> tuple[LlavaShape, Lengths]:
    """A published captioner's shape is known; others are asked for their configuration."""
    if config.captioner.ref in shapes.PUBLISHED:
        shape = shapes.PUBLISHED[config.captioner.ref]
        return shape, models.guessed_lengths(config, shape)
    with models.described(config) as model:
        return shapes.shape_of(model.config), models.lengths(config, model)


class _Models:
    """The checks of both models, which also tell the captioner's shape, and keep hub models to one commit."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.shape: LlavaShape | None = None
        self.lengths: Lengths | None = None

    def check(self) -> Iterator[Finding]:
        """Look at CLIP, then at the captioner."""
        with suppress(JsfreeError):  # each model's own check says what is wrong
            self.config = with_models(self.config)
        yield from run_check("models", "CLIP", lambda: models.check_clip(self.config), models.REMEDY)
        yield from run_check("models", "captioner", self._captioner, models.REMEDY)

    def _captioner(self) -> Iterator[Finding]:
        config, ref = self.config, self.config.captioner.versioned_ref
        if models.is_elsewhere(ref, CAPTIONER, config.models):
            yield models.elsewhere("captioner", ref)
            self.shape = shapes.PUBLISHED.get(config.captioner.ref)
            self.lengths = None if self.shape is None else models.guessed_lengths(config, self.shape)
            return
        with models.described(config) as model:
            self.shape = shapes.shape_of(model.config)
            yield from models.check_captioner(config, model)
            self.lengths = models.lengths(config, model)


class _Looks:
    """The looks at the images."""

    def __init__(self) -> None:
        self._seen: dict[str, Look] = {}
        self._listed: dict[object, Drawn] = {}

    def training(self, config: RunConfig) -> Iterator[Finding]:
        """What is trained on: images, or somebody else's pairs."""
        if config.imported is None:
            return self.at(config, config.source, "source")
        return run_check(data.AREA, "imported", lambda: self._imported(config, config.imported))

    def _imported(self, config: RunConfig, settings: Imported | None) -> Iterator[Finding]:
        assert settings is not None
        look = data.sample_imported(settings)
        self._seen["source"] = Look(look.pairs, 0, look.samples)
        yield from data.check_imported(config, settings, look)

    def at(self, config: RunConfig, source: Source, name: str) -> Iterator[Finding]:
        """A look at a source."""

        def check() -> Iterator[Finding]:
            self._seen[name] = look_at(config, source, data.DECODED_IMAGES, self._listed)
            yield from data.check_source(config, source, name, self._seen[name])

        return run_check(data.AREA, name, check)

    def images(self, config: RunConfig) -> int:
        """Images of a round; pairs where they are imported."""
        seen = self._seen.get("source")
        there = 0 if seen is None else seen.images
        return there if config.imported is not None else images_of_a_round(config, there)

    @property
    def evaluated(self) -> int | None:
        """Images that there are for evaluation."""
        return self._seen["evaluate.source"].images if "evaluate.source" in self._seen else None

    @property
    def image_bytes(self) -> int:
        """Of an image that travels in the tables, on average."""
        samples = self._seen["source"].samples if "source" in self._seen else []
        sizes = [len(sample["image"]["bytes"] or b"") for sample in samples]
        return sum(sizes) // max(1, len(sizes))


def broken(error: ConfigError) -> Preflight:
    """A configuration that cannot even be built, as a table of one row."""
    return Preflight([findings.from_error("settings", "values", error)])

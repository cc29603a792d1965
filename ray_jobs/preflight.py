"""All checks of a configuration, in order, with what the Ray cluster has: ``jsfree preflight`` and ``jsfree plan``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jsfree import config as configuration
from jsfree import shapes
from jsfree.config import Imported, Resources, RunConfig, Source
from jsfree.errors import ConfigError
from jsfree.gpus import why_no_cuda
from jsfree.images import Look, look_at
from jsfree.preflight import data, devices, findings, memory, models, places, rates
from jsfree.preflight import work as works_out
from jsfree.preflight.devices import Device
from jsfree.preflight.findings import Finding, attempted, fails, note, ok
from jsfree.preflight.libraries import check_arithmetic, check_drivers, check_gpu, check_libraries
from jsfree.preflight.memory import Lengths
from jsfree.preflight.rates import Gpu, StageTime
from jsfree.preflight.settings import check_settings
from jsfree.preflight.work import Work
from jsfree.shapes import LlavaShape
from ray_jobs.capacity import check_room, describe, fitting, inventory
from ray_jobs.cluster import Cluster
from ray_jobs.describe import Machine, see_nodes

CLUSTER = "cluster"
MIB = 2**20


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
        return findings.works(self.findings)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "works": self.works,
            "findings": [finding.as_json() for finding in self.findings],
            "stages": [vars(time) for time in self.times],
            "training": [{"mode": name, "gb": size, "fits": fits} for name, size, fits in self.training],
        }


def preflight(config: RunConfig) -> Preflight:
    """Every check of a configuration; none stops the others. Nothing is spent, and of a run's folder nothing stays."""
    result = Preflight()
    take = result.findings.extend
    take(attempted("libraries", "versions", lambda: check_libraries(config)))
    take(attempted("storage", "run folder", lambda: places.check_folder(config), places.REMEDY))
    looks = _Looks()
    if config.imported is None:
        take(looks.at(config, config.source, "source"))
    else:
        take(looks.imported(config, config.imported))
    take(looks.at(config, config.evaluate.source, "evaluate.source"))
    work = works_out.work_of(config, looks.images(config))
    if work.images:
        take(check_settings(config, work))
    take(attempted("models", "CLIP", lambda: models.check_clip(config), models.REMEDY))
    known = _Captioner()
    take(attempted("models", "captioner", lambda: known.check(config), models.REMEDY))
    with Cluster(config) as cluster:
        machines = _Machines(cluster)
        take(attempted(CLUSTER, "resources", lambda: machines.check(config)))
    if known.shape is not None and known.lengths is not None:
        _sizes(config, result, known.shape, known.lengths, work, machines, looks)
    return result


def _sizes(
    config: RunConfig,
    result: Preflight,
    shape: LlavaShape,
    lengths: Lengths,
    work: Work,
    machines: _Machines,
    looks: _Looks,
) -> None:
    """Memory, disk and time, which follow from a captioner's shape."""
    if machines.device is not None:
        device = machines.device
        result.findings += devices.check_memory(config, shape, lengths, device)
        result.training = _ways(config, shape, lengths, device)
    train = config.train
    counted = memory.parameters(shape, train.trained_layers, train.lora)
    features = shape.image_tokens * shape.vision.hidden * memory.BYTES[config.captioner.dtype]
    needed = works_out.disk_bytes(config, work, counted, looks.image_bytes, features)
    passing = works_out.passing_bytes(config, work, counted)
    result.findings += attempted("storage", "room", lambda: places.check_disk(config, needed, passing))
    if machines.gpu is not None or not _asks_for_gpus(config):
        result.times = rates.stage_times(config, work, shape, lengths, machines.gpu)


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
        raise ConfigError("source.count is null, so how much there is to do is not known; --set source.count=N")
    gpu = gpu or _named_gpu(config)
    kind = None if gpu is None else rates.gpu_named(gpu)
    shape, lengths = _shape_without_weights(config)
    work = works_out.work_of(config, images)
    device = devices.this_machine() if kind is None else Device(str(gpu), int(kind.memory), True)
    result = Preflight()
    result.findings += check_settings(config, work)
    result.findings += devices.check_memory(config, shape, lengths, device)
    result.training = _ways(config, shape, lengths, device)
    result.times = rates.stage_times(config, work, shape, lengths, kind)
    return result


def _named_gpu(config: RunConfig) -> str | None:
    asking = [resources for resources in _asked(config).values() if resources.gpus]
    named = next((resources.accelerator_type for resources in asking if resources.accelerator_type), None)
    if asking and named is None:
        raise ConfigError(f"the run asks for GPUs; say which with --gpu: {', '.join(rates.GPUS)}")
    return named


def with_gpus(config: RunConfig, gpus: int) -> RunConfig:
    """The configuration with as many replicas of each stage as so many GPUs take, one stage after another.

    Raises:
        ConfigError: training cannot be shared out among so many workers.
    """
    stages = {"generate": config.generate.resources, "score": config.score.resources, "train": config.train.resources}
    overrides = []
    for stage, resources in stages.items():
        replicas = max(1, int(gpus / (resources.gpus or 1)))
        overrides += [f"{stage}.resources.replicas={replicas}", f"{stage}.resources.gpus={resources.gpus or 1}"]
        overrides.append(f"{stage}.resources.min_replicas=null")
    return configuration.overridden(config, overrides)


def _ways(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> list[tuple[str, float, bool]]:
    """All ways to train, with what they take a worker."""
    room, dtype = devices.training_room(config, device), config.captioner.dtype
    found = []
    for name, train in memory.alternatives(config.train):
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


class _Captioner:
    """The captioner's checks, which also tell its shape."""

    shape: LlavaShape | None = None
    lengths: Lengths | None = None

    def check(self, config: RunConfig) -> Iterator[Finding]:
        with models.described(config) as model:
            self.shape = shapes.shape_of(model.config)
            yield from models.check_captioner(config, model)
            self.lengths = models.lengths(config, model)


class _Looks:
    """The looks at both sources."""

    def __init__(self) -> None:
        self._seen: dict[str, Look] = {}

    def at(self, config: RunConfig, source: Source, name: str) -> Iterator[Finding]:
        def check() -> Iterator[Finding]:
            self._seen[name] = look_at(config, source, data.LOOKED_AT)
            yield from data.check_look(config, source, name, self._seen[name])

        return attempted(data.AREA, name, check)

    def imported(self, config: RunConfig, settings: Imported) -> Iterator[Finding]:
        def check() -> Iterator[Finding]:
            look = data.look_at_imported(settings)
            self._seen["source"] = Look(look.pairs, 0, look.samples)
            yield from data.check_imported(config, settings, look)

        return attempted(data.AREA, "imported", check)

    def images(self, config: RunConfig) -> int:
        """Images of a round; pairs where they are imported."""
        seen = self._seen.get("source")
        there = 0 if seen is None else seen.images
        return there if config.imported is not None else config.source.count or there

    @property
    def image_bytes(self) -> int:
        """Of an image that travels in the tables, on average."""
        samples = self._seen["source"].samples if "source" in self._seen else []
        sizes = [len(sample["image"]["bytes"] or b"") for sample in samples]
        return sum(sizes) // max(1, len(sizes))


class _Machines:
    """What the run will have to work with: this machine, or the cluster that ``ray.address`` names."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.device: Device | None = None
        self.gpu: Gpu | None = None

    def check(self, config: RunConfig) -> Iterator[Finding]:
        """Whether there is room for every stage.

        Raises:
            StageError: no cluster answers at the address.
        """
        if config.ray.address or os.environ.get("RAY_ADDRESS"):
            yield from self._of_cluster(config)
        else:
            yield from self._of_this_machine(config)

    def _of_cluster(self, config: RunConfig) -> Iterator[Finding]:
        self._cluster.ensure()
        import ray

        nodes: dict[str, Machine] = {}
        see_nodes(nodes)
        yield ok(CLUSTER, "nodes", inventory([node["Resources"] for node in ray.nodes() if node["Alive"]]))
        yield from check_drivers(
            [(str(node["host"]), node["nvidia_driver"]) for node in nodes.values() if "gpus" in node]
        )
        for stage, resources in _asked(config).items():
            yield from attempted(CLUSTER, stage, lambda stage=stage, asks=resources: _room(stage, asks))  # type: ignore[misc]
        yield from self._know(_gpus_of(nodes.values()), config)

    def _of_this_machine(self, config: RunConfig) -> Iterator[Finding]:
        import torch

        node = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        for stage, resources in _asked(config).items():
            yield from _here(stage, resources, node)
        gpus = max(resources.gpus for resources in _asked(config).values())
        if gpus and node["GPU"]:
            yield from attempted(CLUSTER, "GPU", lambda: check_gpu(config, gpus))
            names = [(torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory)]
            yield from self._know(names, config)
        elif not gpus:
            self.device = devices.this_machine()

    def _know(self, gpus: list[tuple[str, int]], config: RunConfig) -> Iterator[Finding]:
        """Take the smallest of the GPUs for what every replica gets."""
        if not _asks_for_gpus(config):
            self.device = devices.this_machine()
            return
        if not gpus:
            yield note(
                CLUSTER,
                "GPU",
                "no GPU's memory is known yet, so memory and time are not told",
                "`jsfree plan --gpu KIND --gpus N` tells them without a cluster",
            )
            return
        name, size = min(gpus, key=lambda gpu: gpu[1])
        self.device = Device(name, size, True)
        try:
            self.gpu = rates.gpu_named(name)
        except ConfigError:
            yield note(CLUSTER, "GPU", f"the rates of {name} are not known: times are not told")
            return
        yield from check_arithmetic(config, name, self.gpu)


def _asked(config: RunConfig) -> dict[str, Resources]:
    stages = {"generate": config.generate.resources, "train": config.train.resources}
    return stages if config.score.with_generation else {**stages, "score": config.score.resources}


def _asks_for_gpus(config: RunConfig) -> bool:
    return any(resources.gpus for resources in _asked(config).values())


def _room(stage: str, resources: Resources) -> Iterator[Finding]:
    replicas = resources.min_replicas or resources.replicas
    waiting = check_room(stage, resources, replicas, fixed=False)
    if waiting:
        yield note(CLUSTER, stage, waiting, "the run waits for them; start it when they can come")
    else:
        yield ok(CLUSTER, stage, f"room for {replicas} x ({describe(resources)})")


def _here(stage: str, resources: Resources, node: dict[str, int]) -> Iterator[Finding]:
    """A local Ray session takes as many CPUs as are asked for, but GPUs only where there are some."""
    replicas, told = resources.replicas, f"{resources.replicas} x ({describe(resources)})"
    if resources.gpus and fitting({**node, "CPU": 10**6}, _any_type(resources)) < replicas:
        yield fails(
            CLUSTER,
            stage,
            f"asks for {told}, and this machine has {node['GPU']} GPUs" + ("" if node["GPU"] else f": {why_no_cuda()}"),
            f"set ray.address to a cluster's, submit the run to one, or lower {stage}.resources",
        )
    elif resources.cpus * replicas > node["CPU"]:
        yield note(CLUSTER, stage, f"asks for {told}, and this machine has {node['CPU']} CPUs, which are shared")
    else:
        yield ok(CLUSTER, stage, f"room for {told} here")


def _any_type(resources: Resources) -> Resources:
    return resources.model_copy(update={"accelerator_type": None})


def _gpus_of(machines: Iterable[Machine]) -> list[tuple[str, int]]:
    """Names and memory of the GPUs, as ``machine`` tells them."""
    found = []
    for machine in machines:
        for told in machine.get("gpus", ()):
            name, _, size = told.rpartition(", ")
            found.append((name, int(size.removesuffix(" MiB")) * MIB))
    return found


def broken(error: ConfigError) -> Preflight:
    """A configuration that cannot even be built, as a table of one row."""
    return Preflight([findings.failed("settings", "values", error)])

"""What a run will have to work with, this machine or a Ray cluster, against what its stages ask for: for preflight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from jsfree.checks import devices
from jsfree.checks.devices import Device
from jsfree.checks.findings import Finding, fails, note, ok, run_check
from jsfree.checks.libraries import check_arithmetic, check_drivers
from jsfree.config import Resources, RunConfig
from jsfree.errors import ConfigError
from jsfree.gpus import why_no_cuda
from jsfree.run.environment import Machine
from jsfree.sizing import rates
from jsfree.sizing.rates import Gpu
from jsfree.sizing.work import Work
from ray_jobs.cluster.capacity import check_room, describe, fitting, inventory
from ray_jobs.cluster.nodes import add_new_nodes
from ray_jobs.cluster.session import Cluster, session_folder

CLUSTER = "cluster"
MIB = 2**20


@dataclass(frozen=True)
class _NodeGpu:
    """A GPU of a node: its name, bytes, and what Ray calls its type."""

    name: str
    memory: int
    types: tuple[str, ...]


class Machines:
    """What the run will have to work with: this machine, or the cluster that ``ray.address`` names."""

    def __init__(self, cluster: Cluster, left: set[str], work: Work) -> None:
        self._cluster, self.left, self._work = cluster, left, work
        self._gpus: list[_NodeGpu] = []
        self.gpu: Gpu | None = None

    def check(self, config: RunConfig) -> Iterator[Finding]:
        """Whether there is room for every stage that is left.

        Raises:
            StageError: no cluster answers at the address, or no session can be started here.
        """
        if config.ray.address or os.environ.get("RAY_ADDRESS"):
            yield from self._of_cluster(config)
        else:
            yield from self._of_this_machine(config)

    def device(self, resources: Resources) -> Device | None:
        """What a replica computes on: the smallest of the GPUs that it may get; None where they are not known."""
        if not resources.gpus:
            return devices.this_machine()
        wanted = resources.accelerator_type
        fitting_ones = [gpu for gpu in self._gpus if wanted is None or not gpu.types or wanted in gpu.types]
        if not fitting_ones:
            return None
        smallest = min(fitting_ones, key=lambda gpu: gpu.memory)
        return Device(smallest.name, smallest.memory, True)

    def asks_for_gpus(self, config: RunConfig) -> bool:
        """Whether a stage that is left does."""
        return any(resources.gpus for stage, resources in asked_for(config).items() if stage in self._needed)

    @property
    def _needed(self) -> set[str]:
        """Stages whose resources are wanted yet: evaluation captions and scores."""
        return self.left | ({"generate", "score"} if "evaluate" in self.left else set())

    def _of_cluster(self, config: RunConfig) -> Iterator[Finding]:
        self._cluster.ensure()
        import ray

        nodes: dict[str, Machine] = {}
        add_new_nodes(nodes)
        yield ok(CLUSTER, "nodes", inventory([node["Resources"] for node in ray.nodes() if node["Alive"]]))
        drivers = [(str(node["host"]), node["nvidia_driver"]) for node in nodes.values() if "gpus" in node]
        yield from check_drivers(drivers)
        for stage, resources in asked_for(config).items():
            if stage in self._needed:
                replicas = self._replicas(config, stage, resources)
                yield from run_check(CLUSTER, stage, partial(_room, stage, resources, replicas))
        self._gpus = [gpu for node in nodes.values() for gpu in _gpus_of(node)]
        yield from self._know(config)

    def _of_this_machine(self, config: RunConfig) -> Iterator[Finding]:
        import torch

        session_folder()  # its error is the finding
        usable = torch.cuda.is_available()
        node = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count() if usable else 0}
        for stage, resources in asked_for(config).items():
            if stage in self._needed:
                yield _here(stage, resources, node, self._replicas(config, stage, resources))
        if usable:
            for number in range(int(node["GPU"])):
                properties = torch.cuda.get_device_properties(number)
                self._gpus.append(_NodeGpu(properties.name, properties.total_memory, ()))
        if node["GPU"] or not self.asks_for_gpus(config):
            yield from self._know(config)

    def _replicas(self, config: RunConfig, stage: str, resources: Resources) -> int:
        """How many must find room before a stage begins: no more than it has shards."""
        if stage == "train":
            return resources.replicas
        shards = -(-max(1, self._work.images // self._work.rounds) // config.shard_rows)
        return min(resources.min_replicas or resources.replicas, shards)

    def _know(self, config: RunConfig) -> Iterator[Finding]:
        """Which GPU times are told for: the one that generation gets."""
        asking = [resources for resources in asked_for(config).values() if resources.gpus]
        if not asking:
            return
        device = self.device(asking[0])
        if device is None:
            yield note(
                CLUSTER,
                "GPU",
                "no GPU's memory is known yet, so memory and time are not told",
                "`jsfree plan --gpu KIND --gpus N` tells them without a cluster",
            )
            return
        try:
            self.gpu = rates.gpu_named(device.name)
        except ConfigError:
            yield note(CLUSTER, "GPU", f"the rates of {device.name} are not known: times are not told")
            return
        yield ok(CLUSTER, "GPU", f"{device.name}, {device.memory / devices.GB:.0f} GB")
        yield from check_arithmetic(config, device.name, self.gpu)


def asked_for(config: RunConfig) -> dict[str, Resources]:
    return {"generate": config.generate.resources, "score": config.score.resources, "train": config.train.resources}


def _room(stage: str, resources: Resources, replicas: int) -> Iterator[Finding]:
    waiting = check_room(stage, resources, replicas, fixed=False)
    if waiting:
        yield note(CLUSTER, stage, waiting, "the run waits for them; start it when they can come")
    else:
        yield ok(CLUSTER, stage, f"room for {replicas} x ({describe(resources)})")


def _here(stage: str, resources: Resources, node: dict[str, int], replicas: int) -> Finding:
    """A local Ray session takes as many CPUs as are asked for, but GPUs only where there are some."""
    told = f"{replicas} x ({describe(resources)})"
    anything = resources.model_copy(update={"accelerator_type": None})
    if resources.gpus and fitting({**node, "CPU": 10**6}, anything) < replicas:
        return fails(
            CLUSTER,
            stage,
            f"asks for {told}, and this machine has {node['GPU']} GPUs" + ("" if node["GPU"] else f": {why_no_cuda()}"),
            f"set ray.address to a cluster's, submit the run to one, or lower {stage}.resources",
        )
    if resources.cpus * replicas > node["CPU"]:
        return note(CLUSTER, stage, f"asks for {told}, and this machine has {node['CPU']} CPUs, which are shared")
    return ok(CLUSTER, stage, f"room for {told} here")


def _gpus_of(machine: Machine) -> Iterator[_NodeGpu]:
    """The GPUs of a node whose memory is known, as ``machine`` tells them."""
    for told in machine.get("gpus", ()):
        name, _, size = told.rpartition(", ")
        number = size.removesuffix(" MiB")
        if number.isdigit():
            yield _NodeGpu(name, int(number) * MIB, tuple(machine.get("accelerators", ())))

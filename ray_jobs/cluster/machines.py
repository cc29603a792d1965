"""Preflight's check of the hardware, this machine or a Ray cluster, against the resources that the stages request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from jsfree.checks import devices
from jsfree.checks.devices import Device
from jsfree.checks.findings import Finding, fails, from_error, note, ok, run_check
from jsfree.checks.libraries import check_drivers
from jsfree.config import Resources, RunConfig
from jsfree.errors import ConfigError, DeviceError
from jsfree.gpus import Gpu, check_dtype, cuda_error
from jsfree.run.environment import Machine
from jsfree.sizing import rates
from jsfree.sizing.rates import GpuKind
from jsfree.sizing.workload import Workload
from ray_jobs.cluster.capacity import check_capacity, describe, inventory, replicas_on
from ray_jobs.cluster.nodes import add_new_nodes
from ray_jobs.cluster.session import Cluster, session_folder

CLUSTER = "cluster"
MIB = 2**20
UNLIMITED_CPUS = 10**6


@dataclass(frozen=True)
class _NodeGpu:
    """A GPU of a node.

    Attributes:
        memory: bytes.
        types: the accelerator types that Ray reports for its node; empty if unknown.
    """

    name: str
    memory: int
    types: tuple[str, ...]


class Machines:
    """The hardware for a run: this machine, or the cluster at ``ray.address``.

    Args:
        remaining: the stages that still have to run.
    """

    def __init__(self, cluster: Cluster, remaining: set[str], work: Workload) -> None:
        self._cluster, self.remaining, self._work = cluster, remaining, work
        self._gpus: list[_NodeGpu] = []
        self.gpu: GpuKind | None = None
        """The GPU that times are estimated for, if its rates are known."""

    def check(self, config: RunConfig) -> Iterator[Finding]:
        """Check that every remaining stage fits.

        Raises:
            StageError: no cluster answers at the address, or no session can be started on this machine.
        """
        if config.ray.cluster_address:
            yield from self._check_cluster(config)
        else:
            yield from self._check_this_machine(config)

    def device(self, resources: Resources) -> Device | None:
        """The device of a replica: the smallest GPU that it can get, or this machine's CPUs; None if unknown."""
        if not resources.gpus:
            return devices.this_machine()
        wanted = resources.accelerator_type
        candidates = [gpu for gpu in self._gpus if wanted is None or not gpu.types or wanted in gpu.types]
        if not candidates:
            return None
        smallest = min(candidates, key=lambda gpu: gpu.memory)
        return Device(smallest.name, smallest.memory, True)

    def requests_gpus(self, config: RunConfig) -> bool:
        """Whether a remaining stage requests GPUs."""
        return any(resources.gpus for stage, resources in stage_resources(config).items() if stage in self._used)

    @property
    def _used(self) -> set[str]:
        """The stages whose resources are still used: evaluation captions and scores like ``generate`` and ``score``."""
        return self.remaining | ({"generate", "score"} if "evaluate" in self.remaining else set())

    def _check_cluster(self, config: RunConfig) -> Iterator[Finding]:
        self._cluster.ensure()
        import ray

        nodes: dict[str, Machine] = {}
        add_new_nodes(nodes)
        yield ok(CLUSTER, "nodes", inventory([node["Resources"] for node in ray.nodes() if node["Alive"]]))
        drivers = [(str(node["host"]), node["nvidia_driver"]) for node in nodes.values() if "gpus" in node]
        yield from check_drivers(drivers)
        for stage, resources in stage_resources(config).items():
            if stage in self._used:
                replicas = self._replicas(config, stage, resources)
                yield from run_check(CLUSTER, stage, partial(_check_on_cluster, stage, resources, replicas))
        self._gpus = [gpu for node in nodes.values() for gpu in _gpus_of(node)]
        yield from self._identify_gpu(config)

    def _check_this_machine(self, config: RunConfig) -> Iterator[Finding]:
        import torch

        session_folder()  # an error here becomes the finding
        has_cuda = torch.cuda.is_available()
        node = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count() if has_cuda else 0}
        for stage, resources in stage_resources(config).items():
            if stage in self._used:
                yield _check_on_this_machine(stage, resources, node, self._replicas(config, stage, resources))
        if has_cuda:
            for number in range(int(node["GPU"])):
                properties = torch.cuda.get_device_properties(number)
                self._gpus.append(_NodeGpu(properties.name, properties.total_memory, ()))
        if node["GPU"] or not self.requests_gpus(config):
            yield from self._identify_gpu(config)

    def _replicas(self, config: RunConfig, stage: str, resources: Resources) -> int:
        """Number of replicas that must fit before a stage starts; at most one for each shard."""
        if stage == "train":
            return resources.replicas
        shards = -(-max(1, self._work.images // self._work.rounds) // config.shard_rows)
        return min(resources.min_replicas or resources.replicas, shards)

    def _identify_gpu(self, config: RunConfig) -> Iterator[Finding]:
        """Set ``gpu`` to the GPU of the first stage that requests one."""
        requests = [resources for resources in stage_resources(config).values() if resources.gpus]
        if not requests:
            return
        device = self.device(requests[0])
        if device is None:
            yield note(
                CLUSTER,
                "GPU",
                "the GPUs' memory is unknown, so memory and time are not estimated",
                "estimate them without a cluster with `jsfree plan --gpu KIND --gpus N`",
            )
            return
        try:
            self.gpu = rates.gpu_named(device.name)
        except ConfigError:
            yield note(CLUSTER, "GPU", f"the speed of {device.name} is unknown, so times are not estimated")
            return
        yield ok(CLUSTER, "GPU", f"{device.name}, {device.memory / devices.GB:.0f} GB")
        try:
            check_dtype(Gpu(device.name, device.memory, self.gpu.bf16), config.captioner.dtype)
        except DeviceError as error:
            yield from_error(CLUSTER, "GPU", error)


def stage_resources(config: RunConfig) -> dict[str, Resources]:
    """The resources of the stages that have their own."""
    return {"generate": config.generate.resources, "score": config.score.resources, "train": config.train.resources}


def _check_on_cluster(stage: str, resources: Resources, replicas: int) -> Iterator[Finding]:
    waiting = check_capacity(stage, resources, replicas, fixed=False)
    if waiting:
        yield note(CLUSTER, stage, waiting, "start the run when the nodes can be added; it waits for them")
    else:
        yield ok(CLUSTER, stage, f"{replicas} x ({describe(resources)}) fit on the cluster")


def _check_on_this_machine(stage: str, resources: Resources, node: dict[str, int], replicas: int) -> Finding:
    """A local Ray session offers as many CPUs as are requested, but only the GPUs that exist."""
    request = f"{replicas} x ({describe(resources)})"
    any_gpu = resources.model_copy(update={"accelerator_type": None})
    if resources.gpus and replicas_on({**node, "CPU": UNLIMITED_CPUS}, any_gpu) < replicas:
        reason = "" if node["GPU"] else f": {cuda_error()}"
        return fails(
            CLUSTER,
            stage,
            f"requests {request}, but this machine has {node['GPU']} GPUs{reason}",
            f"set ray.address to a cluster's, submit the run to one, or lower {stage}.resources",
        )
    if resources.cpus * replicas > node["CPU"]:
        return note(
            CLUSTER, stage, f"requests {request}, but this machine has {node['CPU']} CPUs: the replicas share them"
        )
    return ok(CLUSTER, stage, f"{request} fit on this machine")


def _gpus_of(machine: Machine) -> Iterator[_NodeGpu]:
    """The GPUs of a node whose memory is known, from its entry in ``run.json``."""
    for entry in machine.get("gpus", ()):
        name, _, size = entry.rpartition(", ")
        number = size.removesuffix(" MiB")
        if number.isdigit():
            yield _NodeGpu(name, int(number) * MIB, tuple(machine.get("accelerators", ())))

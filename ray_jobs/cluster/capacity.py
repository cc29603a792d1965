"""Checks that a cluster has, or can add, the resources of a stage, before actors wait for them forever."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jsfree.config import Resources
from jsfree.errors import StageError
from jsfree.run.stages import part_of

LAUNCH_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` stores the cluster's configuration on the head node."""
STATUS_SECONDS = 8.0
"""Time that the autoscaler's monitor takes for its first report after a cluster has started."""
ROUNDING = 1e-6

Node = Mapping[str, float]
"""The total resources of a node, by Ray's names."""


def check_capacity(stage: str, resources: Resources, replicas: int, *, fixed: bool) -> str:
    """Check that a stage's replicas fit on the cluster, now or after it has grown.

    Args:
        replicas: number of replicas that must fit before the stage can finish.
        fixed: whether no nodes can be added.

    Returns:
        A message for the user if the stage has to wait for nodes, else an empty string.

    Raises:
        StageError: the replicas never fit.
    """
    nodes = alive_nodes()
    available = sum(replicas_on(node, resources) for node in nodes)
    if available >= replicas:
        return ""
    types = {} if fixed else node_types()
    if fixed or has_no_autoscaler(types):
        maximum: int | None = available
        growth = "no autoscaler adds nodes"
    else:
        maximum = max_replicas(resources, types, launch_config())
        growth = f"at most {maximum} would fit with the nodes that its autoscaler can add"
    request = f"stage {stage!r} requests {replicas} x ({describe(resources)})"
    capacity = f"but {available} fit on the cluster ({inventory(nodes)})"
    if maximum is None or maximum >= replicas:
        return f"{request}, {capacity}: waiting for nodes"
    setting = f"{part.section if (part := part_of(stage)) else stage}.resources"
    fewer = f"lower {setting}.replicas" + ("" if stage == "train" else f", set {setting}.min_replicas")
    raise StageError(
        f"{request}, {capacity}, and {growth}", f"{fewer}, lower the resources of each replica, or add nodes"
    )


def alive_nodes() -> list[Node]:
    """Total resources, free or in use, of the nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def replicas_on(node: Node, resources: Resources) -> int:
    """Number of replicas that fit on an empty node."""
    if resources.accelerator_type and f"accelerator_type:{resources.accelerator_type}" not in node:
        return 0
    limits = [resources.replicas]
    if resources.cpus:
        limits.append(int(node.get("CPU", 0) / resources.cpus + ROUNDING))
    if resources.gpus:
        gpus = int(node.get("GPU", 0))
        # A fraction is part of one GPU: 0.3 fits three times on each, and the remaining 0.1 stays unused.
        limits.append(gpus * int(1 / resources.gpus + ROUNDING) if resources.gpus < 1 else gpus // int(resources.gpus))
    return min(limits)


def node_types() -> dict[str, str]:
    """The autoscaler's node type of every node, by node id; empty if there is no autoscaler."""
    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + STATUS_SECONDS
    status: bytes | None = _internal_kv_get("__autoscaling_status")
    while status is None and time.monotonic() < deadline:
        time.sleep(0.5)
        status = _internal_kv_get("__autoscaling_status")
    report: dict[str, Any] = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    return report.get("node_type_mapping") or {}


def launch_config() -> dict[str, Any]:
    """The configuration of `ray up` if the driver runs on a head node that it started, else an empty mapping."""
    path = LAUNCH_CONFIG.expanduser()
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}


def has_no_autoscaler(types: Mapping[str, str]) -> bool:
    """Whether all nodes have the type names that Ray assigns if nothing can launch nodes."""
    return bool(types) and all(name == f"node_{node}" for node, name in types.items())


def max_replicas(resources: Resources, types: Mapping[str, str], launch: Mapping[str, Any]) -> int | None:
    """Number of replicas that fit when the cluster has grown to its maximum; None if that is unknown."""
    launched: Mapping[str, Any] = launch.get("available_node_types") or {}
    of_this_cluster = types and set(types.values()) <= set(launched)
    if not of_this_cluster or not all(node_type.get("resources") for node_type in launched.values()):
        return None
    return sum(
        replicas_on(_with_accelerator(node_type["resources"], resources), resources)
        * (
            1
            if name == launch.get("head_node_type")
            else int(node_type.get("max_workers", launch.get("max_workers", 0)))
        )
        for name, node_type in launched.items()
    )


def _with_accelerator(node: Node, resources: Resources) -> Node:
    """A node type with GPUs of an unstated kind is assumed to have the requested kind."""
    if any(name.startswith("accelerator_type:") for name in node) or not node.get("GPU"):
        return node
    return {**node, f"accelerator_type:{resources.accelerator_type}": 1}


def describe(resources: Resources) -> str:
    """The resources of one replica, such as ``4 CPU + 1 GPU of type A100``."""
    parts = [f"{resources.cpus:g} CPU"] + ([f"{resources.gpus:g} GPU"] if resources.gpus else [])
    return " + ".join(parts) + (f" of type {resources.accelerator_type}" if resources.accelerator_type else "")


def inventory(nodes: Sequence[Node]) -> str:
    """The resources of a cluster, such as ``2 nodes, 100 CPU, 8 GPU of type A100``."""
    types = sorted({name.split(":", 1)[1] for node in nodes for name in node if name.startswith("accelerator_type:")})
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{len(nodes)} nodes, {cpus:g} CPU, {gpus:g} GPU" + (f" of type {', '.join(types)}" if types else "")

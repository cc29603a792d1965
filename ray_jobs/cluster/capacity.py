"""Whether a cluster has, or can come to have, what a stage asks for: told before actors wait for it for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jsfree.config import Resources
from jsfree.errors import StageError

SECTIONS = {"pairs": "generate", "captions": "generate", "scored": "score", "captions_scored": "score"}
LAUNCH_CONFIG = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves its configuration on the head node
STATUS_SECONDS = 8.0  # the autoscaler's monitor first reports some seconds after a cluster's start
ROUNDING = 1e-6

Node = Mapping[str, float]


def check_room(stage: str, resources: Resources, replicas: int, *, fixed: bool) -> str:
    """What a person should know before a stage waits for nodes; empty when the cluster has room for it.

    Args:
        replicas: how many of the stage's replicas must find room before it can do all that was asked.
        fixed: it is known that no nodes can come.

    Raises:
        StageError: the stage asks for more than the cluster has, and than its autoscaler may add.
    """
    nodes = alive_nodes()
    room = sum(fitting(node, resources) for node in nodes)
    if room >= replicas:
        return ""
    kinds = {} if fixed else node_kinds()
    if fixed or nobody_launches(kinds):
        most, growth = room, "no autoscaler adds nodes"
    else:
        most = most_room(resources, kinds, launch_config())
        growth = f"its autoscaler can make that {most}"
    asked = f"stage {stage!r} asks for {replicas} x ({describe(resources)})"
    has = f"the cluster has room for {room} ({inventory(nodes)})"
    if most is None or most >= replicas:
        return f"{asked}; {has}: waiting for nodes"
    setting = f"{SECTIONS.get(stage, stage)}.resources"
    fewer = f"lower {setting}.replicas" + ("" if stage == "train" else f", set {setting}.min_replicas")
    raise StageError(f"{asked}; {has} and {growth}", f"{fewer}, ask for less a replica, or add nodes")


def alive_nodes() -> list[Node]:
    """Total resources of the nodes that are alive, whoever uses them now."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting(node: Node, resources: Resources) -> int:
    """Replicas that an empty node takes."""
    if resources.accelerator_type and f"accelerator_type:{resources.accelerator_type}" not in node:
        return 0
    rooms = [resources.replicas]
    if resources.cpus:
        rooms.append(int(node.get("CPU", 0) / resources.cpus + ROUNDING))
    if resources.gpus:
        each = resources.gpus
        whole = int(node.get("GPU", 0))
        # Fractions share one GPU: 0.3 goes into each GPU three times, and what is left over is lost.
        rooms.append(whole * int(1 / each + ROUNDING) if each < 1 else whole // int(each))
    return min(rooms)


def node_kinds() -> dict[str, str]:
    """The autoscaler's name for the kind of every node, by node id; empty where no autoscaler reports any."""
    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + STATUS_SECONDS
    while (status := _internal_kv_get("__autoscaling_status")) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    report: dict[str, Any] = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    return report.get("node_type_mapping") or {}


def launch_config() -> dict[str, Any]:
    """What the cluster's autoscaler may launch, where the driver runs on a head node that `ray up` made."""
    path = LAUNCH_CONFIG.expanduser()
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}


def nobody_launches(kinds: Mapping[str, str]) -> bool:
    """Whether all nodes have the names that Ray gives where it has nothing to launch more with."""
    return bool(kinds) and all(kind == f"node_{node}" for node, kind in kinds.items())


def most_room(resources: Resources, kinds: Mapping[str, str], launch: Mapping[str, Any]) -> int | None:
    """Replicas that the cluster takes when it has grown as far as it may; None where nobody knows."""
    types: Mapping[str, Any] = launch.get("available_node_types") or {}
    of_this_cluster = kinds and set(kinds.values()) <= set(types)
    if not of_this_cluster or not all(kind.get("resources") for kind in types.values()):
        return None
    return sum(
        fitting(_with_accelerator(kind["resources"], resources), resources)
        * (1 if name == launch.get("head_node_type") else int(kind.get("max_workers", launch.get("max_workers", 0))))
        for name, kind in types.items()
    )


def _with_accelerator(node: Node, resources: Resources) -> Node:
    """A node type that does not say which GPUs it has may have the ones that are asked for."""
    if any(name.startswith("accelerator_type:") for name in node) or not node.get("GPU"):
        return node
    return {**node, f"accelerator_type:{resources.accelerator_type}": 1}


def describe(resources: Resources) -> str:
    """What one replica reserves."""
    parts = [f"{resources.cpus:g} CPU"] + ([f"{resources.gpus:g} GPU"] if resources.gpus else [])
    return " + ".join(parts) + (f" of type {resources.accelerator_type}" if resources.accelerator_type else "")


def inventory(nodes: Sequence[Node]) -> str:
    """What a cluster has, in words."""
    types = sorted({name.split(":", 1)[1] for node in nodes for name in node if name.startswith("accelerator_type:")})
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{len(nodes)} nodes, {cpus:g} CPU, {gpus:g} GPU" + (f" of type {', '.join(types)}" if types else "")

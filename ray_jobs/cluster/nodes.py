"""The nodes of the Ray session, for ``run.json`` and preflight."""

from __future__ import annotations

from contextlib import suppress

from jsfree.run.environment import Machine, gibibytes, machine


def add_new_nodes(known: dict[str, Machine]) -> None:
    """Add the nodes of the Ray session that are not ``known`` yet, by id; nodes with GPUs describe themselves."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return
    new = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in known]
    remote = ray.remote(num_cpus=0, max_retries=0)(machine)
    descriptions = {
        node["NodeID"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in new
        if node["Resources"].get("GPU")
    }
    for node in new:
        total = node["Resources"]
        known[node["NodeID"]] = {
            "host": node["NodeManagerHostname"],
            "resources": {kind: total[kind] for kind in ("CPU", "GPU") if kind in total},
            "memory_gib": gibibytes(total.get("memory", 0)),
            "accelerators": [name.split(":", 1)[1] for name in total if name.startswith("accelerator_type:")],
        }
    for node, description in descriptions.items():
        with suppress(ray.exceptions.RayError):  # the node left before it answered
            answer: Machine = ray.get(description)
            known[node] |= answer

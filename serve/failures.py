"""Errors of replicas that do not start, for the process that starts them: Serve reports only a traceback as text.

A replica gets the name of a queue and not the queue itself. The queue ends with the process that made it, and with a
reference to it no replica could be created later: when another one dies, or the load grows.
"""

from __future__ import annotations

import uuid
from contextlib import suppress

import ray
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jsfree.errors import JsfreeError, ServeError

NAMESPACE = "jsfree"


class Failures:
    """The queue, on this process's node."""

    def __init__(self) -> None:
        self.name = f"failures-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "name": self.name, "namespace": NAMESPACE}
        self._queue = Queue(actor_options=options)

    def first(self) -> JsfreeError | None:
        """The first error that was reported; None if there is none."""
        with suppress(RayError):
            if not self._queue.empty():
                failure: JsfreeError = self._queue.get()
                return failure
        return None


def report(queue: str, error: Exception) -> None:
    """Add an error to a queue, unless the process that made the queue has ended."""
    failure = error if isinstance(error, JsfreeError) else ServeError(f"{type(error).__name__}: {error}")
    with suppress(RayError, ValueError):  # ValueError: there is no queue of this name
        ray.get(ray.get_actor(queue, namespace=NAMESPACE).put_nowait.remote(failure))

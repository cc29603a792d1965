"""Functions and actors for other machines that first compare the worker's code with the driver's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from jsfree.run import code_version

T = TypeVar("T")


def checked_function(function: Callable[[], T]) -> Callable[[], T]:
    """Wrap ``function`` so that a worker compares its code with the driver's before it calls it.

    ``function`` is unpickled after the comparison, because with other code unpickling can fail first. The wrapper is
    pickled by value and uses nothing else of this module.

    Raises (in the worker):
        CodeError: the worker has other code or libraries than the driver.
        ImportError: the worker's code is too old to compare, or even to have ``CodeError``.
    """
    import ray.cloudpickle

    expected, pickled = asdict(code_version.current_version()), ray.cloudpickle.dumps(function)

    def compare_and_call() -> T:
        import platform

        import ray.cloudpickle

        node = f"node {platform.node()} ({ray.util.get_node_ip_address()})"
        try:
            from jsfree.run import code_version

            code_version.require_same_code(code_version.CodeVersion(**expected), node)
        except (ImportError, AttributeError, TypeError) as error:
            raise ImportError(f"{node} has other code than the driver: {error}", name="jsfree") from error
        result: T = ray.cloudpickle.loads(pickled)()
        return result

    return compare_and_call


def checked_actor(build: Callable[[], Callable[[Any], Any]], stage: str) -> type:
    """A class for ``map_batches`` around the callable that ``build`` makes on the worker.

    Its errors are those that the driver is to raise (``failures.stage_error``): Ray Data appends advice to the text of
    an error, which only a ``JsfreeError`` does not pass on. An error of ``build`` is raised by the first call: if an
    actor fails to start, Ray starts it again and prints a long traceback each time.
    """
    checked_build = checked_function(build)

    class CheckedActor:
        def __init__(self) -> None:
            self.start_error: Exception | None = None
            try:
                self.process = checked_build()
            except Exception as error:  # noqa: BLE001 - raised by the first call
                self.start_error = error

        def __call__(self, batch: Any) -> Any:
            if self.start_error is not None:
                raise self.start_error
            try:
                return self.process(batch)
            except Exception as error:
                from ray_jobs.cluster.failures import stage_error

                raise stage_error(stage, error) from error

    return CheckedActor

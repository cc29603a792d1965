"""Work for other machines that is done only where they have the driver's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from jsfree.run import code_version

T = TypeVar("T")


def carried(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` as a function that first compares the worker's code with the driver's.

    ``work`` is unpickled after that: before, other code would fail with whatever it lacks. The function itself
    travels by value and uses nothing of this module.

    Raises (where it is called):
        CodeError: the worker has other code or libraries than the driver.
    """
    import ray.cloudpickle

    expected, packed = asdict(code_version.here()), ray.cloudpickle.dumps(work)

    def checked() -> T:
        import platform

        import ray.cloudpickle

        node = f"node {platform.node()} ({ray.util.get_node_ip_address()})"
        try:
            from jsfree.run import code_version as found

            found.refuse_other_code(found.CodeVersion(**expected), node)
        except (ImportError, AttributeError, TypeError) as error:  # so old that it cannot even compare
            told = f"{node} has other code than the driver: {error}; install the driver's jsfree there"
            kind = "jsfree.errors.CodeError"  # by this text the driver knows what its own classes are here
            raise RuntimeError(f"{kind}: {told}") from error
        done: T = ray.cloudpickle.loads(packed)()
        return done

    return checked


def carried_actor(build: Callable[[], Callable[[Any], Any]]) -> type:
    """A class for ``map_batches`` around the callable that ``build`` makes on the worker."""
    make = carried(build)

    class Carried:
        def __init__(self) -> None:
            self.failed: Exception | None = None
            try:
                self.work = make()
            except Exception as error:  # noqa: BLE001 - raised by the first call: Ray tells that in one error,
                self.failed = error  # but prints pages about an actor that does not start, and tries again

        def __call__(self, batch: Any) -> Any:
            if self.failed is not None:
                raise self.failed
            return self.work(batch)

    return Carried

"""Starting or joining Ray, only when a stage has work, and quietly."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jsfree.config import RunConfig
from jsfree.errors import JsfreeError, StageError

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


class Cluster:
    """A Ray session that starts at the first ``ensure`` and ends with the ``with`` block."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._started = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            import ray

            ray.shutdown()

    def ensure(self) -> None:
        """Have a Ray session; one that the caller started is used and left alone.

        Raises:
            StageError: there is no cluster at the configured address.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return
        address = self.config.ray.address or os.environ.get("RAY_ADDRESS")
        local = {"num_cpus": self.config.ray.num_cpus or self._cpus(), "include_dashboard": False}
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if address else local),
            )
        except ConnectionError as error:
            raise StageError(f"no Ray cluster answers at {address!r}: {error}; set ray.address") from error
        self._started = True
        _quieten_ray_data()

    def _cpus(self) -> float:
        """Logical CPUs that the hungriest stage asks for, and one for what Ray itself runs."""
        stages = (self.config.generate, self.config.score, self.config.train)
        needed = max(stage.resources.replicas * stage.resources.cpus for stage in stages)
        return max(4, int(needed) + 1)


def _quieten_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def explained(stage: str) -> Iterator[None]:
    """Turn what Ray raises when a stage fails into one StageError that names the cause.

    An error of ours that a worker raised is raised again as it is.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        cause = _root(error)
        if isinstance(cause, JsfreeError):
            raise cause from error
        line = (str(cause).strip().splitlines() or [""])[-1]
        raise StageError(f"stage {stage!r} failed: {type(cause).__name__}: {line}; run it again to go on") from error


def _root(error: BaseException) -> BaseException:
    """The innermost cause that a chain of Ray's wrappers carries, preferring an error of ours."""
    seen: list[BaseException] = []
    open_errors: list[object] = [error]
    while open_errors:
        current = open_errors.pop()
        if not isinstance(current, BaseException) or current in seen:
            continue
        if isinstance(current, JsfreeError):
            return current
        seen.append(current)
        failures = getattr(current, "worker_failures", None) or {}
        open_errors += [*failures.values(), getattr(current, "cause", None), current.__cause__, current.__context__]
    return seen[-1]

"""Errors of Ray tasks, actors and training workers, raised on the driver as the error that the worker raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jsfree.errors import CodeError, JsfreeError, StageError
from jsfree.run.code_version import PACKAGES


@contextmanager
def unwrap_errors(stage: str) -> Iterator[None]:
    """Replace Ray's wrappers around a worker's error by the error itself, see ``stage_error``."""
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        raise stage_error(stage, _origin(error)) from error


def stage_error(stage: str, error: BaseException) -> JsfreeError:
    """The error that a command reports for ``error``, which was raised in a worker of ``stage``.

    Returns:
        ``error`` itself if it is a ``JsfreeError``, a ``CodeError`` if it failed to import our code, else a
        ``StageError`` with the type of ``error`` and the first line of its text.
    """
    if isinstance(error, JsfreeError):
        return error
    line = first_line(error)
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in PACKAGES:
        return CodeError(f"stage {stage!r} failed: {line}", "install the driver's version of jsfree on the nodes")
    return StageError(
        f"stage {stage!r} failed: {type(error).__name__}: {line}",
        "run the same command again to continue, or with --debug to see the traceback",
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text; Ray appends advice about its own settings in further lines."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else "no message"


def _origin(error: BaseException) -> BaseException:
    """The error inside Ray's wrappers; if several training workers failed, one with a ``JsfreeError`` is preferred."""
    failures = getattr(error, "worker_failures", None)
    wrapped = list(failures.values()) if failures else [getattr(error, "controller_failure", None)]
    origins = [_origin(each) for each in (*wrapped, getattr(error, "cause", None)) if isinstance(each, BaseException)]
    return next((each for each in origins if isinstance(each, JsfreeError)), origins[0] if origins else error)

"""Keeps the log messages and warnings of libraries off the terminal; jsfree reports their failures itself."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Read by the libraries when they are imported; Ray's worker processes inherit it. A variable that is set is kept."""


def set_environment() -> None:
    """Set ``ENVIRONMENT`` for this process and those that it starts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def silence_libraries() -> None:
    """Set up this process; call it before libraries are imported."""
    set_environment()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # DeepSpeed sets the level and the handler of its logger when it is imported, but keeps a filter.
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def silence_ray() -> None:
    """Turn off the progress bars and log messages of Ray, Ray Data and Ray Train, once Ray is initialised."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def silent_output(*descriptors: int) -> Iterator[None]:
    """Discard what this process, its native code and its children write to file descriptors such as 2 (stderr)."""
    _flush()
    saved = {number: os.dup(number) for number in descriptors}
    with open(os.devnull, "w", encoding="utf-8") as devnull:
        for number in descriptors:
            os.dup2(devnull.fileno(), number)
    try:
        yield
    finally:
        try:
            _flush()
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR

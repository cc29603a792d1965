"""Set-up of a driver that `ray job submit` started.

Its working folder is a temporary copy of the uploaded one, so relative paths need another base. Its environment was
built before the upload and can differ from it.
"""

from __future__ import annotations

import os
from pathlib import Path

from jsfree.config import RunConfig
from jsfree.errors import ConfigError
from jsfree.run.code_version import require_uploaded_code
from jsfree.uris import has_scheme

HOME = "JSFREE_HOME"
SET_BY_RAY = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_job() -> bool:
    """Whether Ray started this process as the driver of a submitted job."""
    return SET_BY_RAY in os.environ


def prepare_for_job(config: RunConfig) -> RunConfig:
    """In a job, change into the folder of JSFREE_HOME and make the run's path absolute; elsewhere do nothing.

    Raises:
        CodeError: the environment does not match the uploaded code.
        ConfigError: the run would be lost with the job's temporary folder.
    """
    if not in_job():
        return config
    require_uploaded_code(Path.cwd())
    home = os.environ.get(HOME)
    if home:
        try:
            os.chdir(home)
        except OSError as error:
            raise ConfigError(f"{HOME}={home}: {error.strerror}", "set it to a folder that all nodes share") from error
    elif not _is_absolute(config.run):
        raise ConfigError(
            f"run {config.run!r} is a relative path, but a job's working folder is temporary",
            "set --run to a URI or to an absolute path that all nodes share, or set"
            f" {HOME} on the nodes to a shared base folder",
        )
    return config if _is_absolute(config.run) else config.model_copy(update={"run": os.path.abspath(config.run)})


def _is_absolute(path: str) -> bool:
    return has_scheme(path) or os.path.isabs(path)

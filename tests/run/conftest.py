"""Fixtures for the tests of a run's files."""

import pytest


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path) -> str:
    """The folder of a run, on the local file system and in memory."""
    if request.param == "local":
        return str(tmp_path / "run")
    return f"memory://{tmp_path.name}/run"

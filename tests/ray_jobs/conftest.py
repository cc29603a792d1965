"""One Ray session for the tests of a module."""

from collections.abc import Iterator

import pytest

from jsfree import config
from ray_jobs.cluster.session import Cluster


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with Cluster(config.RunConfig()) as cluster:
        cluster.ensure()
        yield

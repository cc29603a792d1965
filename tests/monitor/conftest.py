"""Finished runs that the tests of this folder share and do not change."""

import pytest

from jsfree.run.run import Run
from tests.support import example_run


@pytest.fixture(scope="session")
def one_round(tmp_path_factory) -> Run:
    return example_run.build(tmp_path_factory.mktemp("runs") / "one", errors=False)


@pytest.fixture(scope="session")
def two_rounds(tmp_path_factory) -> Run:
    settings = {"train": {"learning_rate": 1e-4}}
    return example_run.build(tmp_path_factory.mktemp("runs") / "two", rounds=2, **settings)

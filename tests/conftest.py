"""Settings of all tests: no model hub, one thread per process, and slow files first."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import pytest
import torch

from jsfree.models.loading import Captioner, load_captioner

torch.set_num_threads(1)  # on two cores, threads of one process slow down the actors of another


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests on machines without a GPU."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that short files fill the gaps at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def captioner() -> Iterator[Captioner]:
    """The shipped tiny LLaVA."""
    return load_captioner("miniworld:captioner")

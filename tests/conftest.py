"""What all tests share: quiet libraries, one thread a process, and small real runs."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import pytest
import torch

from jsfree.models.loading import Captioner, load_captioner

torch.set_num_threads(1)  # two cores: threads of one process hinder the actors of another


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: with two files at a time, the short ones then fill what is left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def captioner() -> Iterator[Captioner]:
    """The shipped tiny LLaVA."""
    return load_captioner("miniworld:captioner")

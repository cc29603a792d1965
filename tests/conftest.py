"""What all tests share: quiet libraries, one thread a process, and small real runs."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import pytest
import torch

from jsfree.models import Captioner, load_captioner

torch.set_num_threads(1)  # two cores: threads of one process hinder the actors of another


@pytest.fixture(scope="session")
def captioner() -> Iterator[Captioner]:
    """The shipped tiny LLaVA."""
    return load_captioner("miniworld:captioner")

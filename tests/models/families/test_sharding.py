"""Training of families with parameters outside of layers, or further features of an image, by two real workers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jsfree.models.families.base import TOWER
from tests.support.families import sharding
from tests.support.families.builders import BUILDERS

pytestmark = pytest.mark.slow
NAMES = ("LLaVA-NeXT", "LLaVA-OneVision", "Qwen3-VL")
"""With ``image_newline``, with tied embeddings beside it, and with DeepStack."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    sharding.by_two_workers(NAMES, folder)
    return folder


@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_two_workers_under_zero_3_is_that_of_one_process(trained, name, cached):
    captioner = BUILDERS[name]()
    before = {key: tensor.clone() for key, tensor in captioner.model.state_dict().items()}
    expected, _ = sharding.by_one_process(name)
    found = load_file(sharding.file_of(trained, name, cached))
    assert found.keys() == expected.keys() == before.keys()
    for key, weight in expected.items():
        change = weight - before[key]
        if captioner.family.part_of(key) == TOWER:
            assert torch.equal(found[key], before[key]), key
        else:
            apart = float((found[key] - weight).norm())
            assert apart <= 1e-4 * float(change.norm()) + 1e-6, key
    assert any(float((found[key] - before[key]).norm()) for key in found if key.endswith("image_newline")) or (
        name == "Qwen3-VL"
    )

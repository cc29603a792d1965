"""Training of families with parameters outside of layers, or further features of an image, by two real workers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jsfree.models.families.base import TOWER
from tests.support.families import sharding
from tests.support.families.builders import BUILDERS

pytestmark = pytest.mark.slow
NAMES = {"LLaVA-NeXT": "model.image_newline", "Qwen3-VL": "model.visual.deepstack_merger_list.0.linear_fc1.weight"}
"""Families, and a parameter of each that LLaVA-1.5 has no like of. The embeddings of Qwen3-VL are tied."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    sharding.by_two_workers(tuple(NAMES), folder)
    return folder


@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_two_workers_under_zero_3_is_that_of_one_process(trained, name, cached):
    captioner = BUILDERS[name]()
    before = {key: tensor.clone() for key, tensor in captioner.model.state_dict().items()}
    expected = sharding.by_one_process(name)
    found = load_file(sharding.file_of(trained, name, cached))
    assert found.keys() == expected.keys() == before.keys()
    for key, weight in expected.items():
        change = weight - before[key]
        if captioner.family.part_of(key) == TOWER:
            assert torch.equal(found[key], before[key]), key
        else:
            apart = float((found[key] - weight).norm())
            assert apart <= 1e-4 * float(change.norm()) + 1e-6, key
    assert not torch.equal(found[NAMES[name]], before[NAMES[name]])

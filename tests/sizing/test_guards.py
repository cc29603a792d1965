"""Checks before training."""

import shutil
import tempfile

import pytest
import torch

from jsfree.config import RunConfig, build
from jsfree.errors import ConfigError, DeviceError
from jsfree.gpus import Gpu
from jsfree.models.families.registry import FAMILIES
from jsfree.run.folder import Folder
from jsfree.sizing import footprint, shapes
from jsfree.sizing.disks import DiskRequirement
from jsfree.sizing.guards import check_disks, check_memory, check_training, disk_requirements

A100 = Gpu("NVIDIA A100-SXM4-80GB", 85_095_874_560, bf16=True)
LLAVA = shapes.tensors(shapes.PUBLISHED["llava-hf/llava-1.5-7b-hf"])


def settings(**train) -> RunConfig:
    return build({"captioner": {"dtype": "bfloat16"}, "train": {"resources": {"replicas": 1}, **train}}, where="test")


def test_a_model_whose_state_exceeds_the_gpu_is_refused():
    whole, some = (footprint.parameters_of(LLAVA, FAMILIES["llava"], layers) for layers in (None, 4))
    with pytest.raises(DeviceError, match=r"6\.76 of 7\.06 billion .* 149 GB .* A100-SXM4-80GB has 85 GB; .*layers"):
        check_memory(A100, whole, settings())
    check_memory(A100, some, settings(trained_layers=4))
    check_memory(A100, whole, settings(zero_stage=3, resources={"replicas": 8}))


def test_a_full_disk_is_refused_with_the_figures(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_disks([DiskRequirement(str(tmp_path), free // 2, "a checkpoint")])
    told = rf"up to {2 * free / 1e9:.1f} GB to a disk with \d+\.\d GB free \(.*not/there.*train\.keep"
    with pytest.raises(DeviceError, match=told) as error:
        check_disks([DiskRequirement(str(tmp_path / "not" / "there"), 2 * free, "a checkpoint")])
    assert "\n" not in str(error.value)


def test_requirements_on_one_disk_add_up(tmp_path):
    part = int(0.6 * shutil.disk_usage(tmp_path).free)
    check_disks([DiskRequirement(str(tmp_path / "a"), part, "a checkpoint")])
    with pytest.raises(DeviceError, match=r"/b: .*, another; .*/a: .*, one"):
        check_disks(
            [DiskRequirement(str(tmp_path / "a"), part, "one"), DiskRequirement(str(tmp_path / "b"), part, "another")]
        )


def test_checkpoints_model_and_a_temporary_copy_are_required(tmp_path):
    parameters = footprint.Parameters(total=1000, trained=900)
    checkpoint, model = 12 * 900 + 2 * 1000, 2000
    temporary, kept = disk_requirements(parameters, settings(checkpoint_every=10, keep=2), 100, Folder(str(tmp_path)))
    assert (temporary.path, temporary.bytes) == (tempfile.gettempdir(), checkpoint)
    assert (kept.path, kept.bytes) == (str(tmp_path), 3 * checkpoint + model)


def test_files_of_an_interrupted_training_are_not_required_again(tmp_path):
    parameters = footprint.Parameters(total=1000, trained=900)
    (tmp_path / "checkpoints-1").mkdir()
    (tmp_path / "checkpoints-1" / "state.pt").write_bytes(b"0" * 5000)
    fresh, resumed = (
        disk_requirements(parameters, settings(checkpoint_every=10), 100, Folder(str(path)))[1].bytes
        for path in (tmp_path / "other", tmp_path)
    )
    assert resumed == fresh - 5000


def test_without_checkpoints_only_the_model_is_written():
    parameters = footprint.Parameters(total=1000, trained=900)
    requirements = disk_requirements(parameters, settings(checkpoint_every=100), 100, Folder("memory://run/train"))
    assert [(each.path, each.bytes) for each in requirements] == [(tempfile.gettempdir(), 2000)]


def test_miniworld_trains_on_any_machine(tmp_path):
    check_training(RunConfig(), "miniworld:captioner", 100, 20, str(tmp_path))
    with pytest.raises(ConfigError, match=r"train.trained_layers is 9, but .* 3 layers"):
        check_training(settings(trained_layers=9), "miniworld:captioner", 100, 20, str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_a_reserved_gpu_that_torch_cannot_use_is_explained(tmp_path):
    config = settings(resources={"replicas": 1, "gpus": 1})
    with pytest.raises(DeviceError, match="1 GPU reserved, but torch cannot use CUDA: "):
        check_training(config, "miniworld:captioner", 100, 20, str(tmp_path))


def test_existing_features_are_not_required_again(tmp_path):
    parameters = footprint.Parameters(total=1000, trained=900)
    output = tmp_path / "train"
    plain, cached = (
        disk_requirements(parameters, settings(), 100, Folder(str(output)), features)[1].bytes for features in (0, 7000)
    )
    assert cached == plain + 7000
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "a.safetensors").write_bytes(b"0" * 3000)
    assert disk_requirements(parameters, settings(), 100, Folder(str(output)), 7000)[1].bytes == plain + 4000

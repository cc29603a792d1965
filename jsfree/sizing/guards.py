"""Checks before training: what would stop it hours later, such as a missing GPU, too little memory or a full disk.

``check_training`` runs on a node that would train, with a worker's GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from jsfree.config import RunConfig
from jsfree.errors import DeviceError
from jsfree.gpus import Gpu, check_dtype, visible_gpu
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import local_folder
from jsfree.run.folder import Folder
from jsfree.sizing import footprint
from jsfree.sizing.disks import DiskRequirement, by_disk
from jsfree.sizing.footprint import Parameters

GB = 1e9


def check_training(config: RunConfig, policy: str, pairs: int, steps: int, output: str) -> None:
    """Check that this node can train.

    Args:
        policy: reference of the model that is trained.
        pairs: selected pairs.
        steps: optimizer steps of the whole training.
        output: folder of the stage, which gets the checkpoints; the model goes next to it.

    Raises:
        DeviceError: a GPU, its memory or a disk is insufficient.
        ConfigError: the model has fewer layers than are to be trained.
        ModelError: the model is missing.
    """
    gpus = config.train.resources.gpus
    gpu = visible_gpu(gpus) if gpus else None
    if gpu is not None:
        check_dtype(gpu, config.captioner.dtype)
    train, folder = config.train, local_folder(policy, CAPTIONER, config.models)
    parameters = footprint.count_parameters(folder, train.trained_layers, train.lora)
    if gpu is not None:
        check_memory(gpu, parameters, config)
    features = pairs * footprint.feature_bytes(folder, config.captioner.dtype) if train.cache_vision_features else 0
    check_disks(disk_requirements(parameters, config, steps, Folder(output), features))


def check_memory(gpu: Gpu, parameters: Parameters, config: RunConfig) -> None:
    """Check that weights, gradients and optimizer fit a GPU; activations are not counted.

    Raises:
        DeviceError: they do not fit.
    """
    train, workers = config.train, config.train.resources.replicas
    required = footprint.gpu_bytes(parameters, train.zero_stage, workers, config.captioner.dtype, train.offload)
    if required > gpu.memory:
        raise DeviceError(
            f"training {parameters.trained / GB:.2f} of {parameters.total / GB:.2f} billion parameters with"
            f" {workers} workers and ZeRO-{train.zero_stage} takes {required / GB:.0f} GB per GPU before activations,"
            f" but {gpu.name} has {gpu.memory / GB:.0f} GB",
            f"use more workers (train.resources.replicas),"
            f" {'' if train.zero_stage == 3 else 'train.zero_stage: 3, '}keep the optimizer in the nodes' memory"
            " (train.offload), or train adapters (train.lora) or fewer layers (train.trained_layers)",
        )


def disk_requirements(
    parameters: Parameters, config: RunConfig, steps: int, output: Folder, features: int = 0
) -> list[DiskRequirement]:
    """The most that training writes to local disks at a time, minus what an interrupted training has left there.

    A worker writes its part of a checkpoint into a temporary folder, from which Ray copies it into the run; the
    model takes the same way. All workers are assumed to be on one node.
    """
    train, dtype = config.train, config.captioner.dtype
    checkpoint = footprint.checkpoint_bytes(parameters, train.zero_stage, dtype)
    model = footprint.model_bytes(parameters, dtype)
    count = footprint.max_checkpoints(steps, train.checkpoint_every, train.keep)
    temporary = footprint.temporary_bytes(parameters, train.zero_stage, dtype, count)
    requirements = [DiskRequirement(tempfile.gettempdir(), temporary, "one of them before it is copied")]
    if output.is_local:
        written = Path(output.path).parent / "features"
        remaining = max(0, count * checkpoint + model - _size(Path(output.path))) + max(0, features - _size(written))
        cached = f", {features / GB:.1f} GB of image features" if features else ""
        purpose = (
            f"{count} checkpoints of {checkpoint / GB:.1f} GB (train.keep: {train.keep}, and the one being written)"
            f"{cached} and the model of {model / GB:.1f} GB"
        )
        requirements.append(DiskRequirement(output.path, remaining, purpose))
    return requirements


def check_disks(requirements: Iterable[DiskRequirement]) -> None:
    """Check that every disk has enough free space; requirements on one disk add up.

    Raises:
        DeviceError: a disk has too little.
    """
    for disk in by_disk(requirements):
        if disk.is_sufficient:
            continue
        parts = [f"{each.path}: {each.bytes / GB:.1f} GB, {each.purpose}" for each in reversed(disk.requirements)]
        raise DeviceError(
            f"training writes up to {disk.required / GB:.1f} GB to a disk with {disk.free / GB:.1f} GB free"
            f" ({'; '.join(parts)})",
            "free some, put --run or TMPDIR on a larger disk, lower train.keep, or raise train.checkpoint_every (at the"
            " number of steps or above, none is written), then run it again: nothing is lost",
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

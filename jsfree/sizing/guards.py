"""What would stop a training hours in is found out before it starts: GPU, bfloat16, memory, disk.

``check_training`` runs where a worker would, with a worker's GPU; on a cluster that is one node of those that train.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jsfree.config import RunConfig
from jsfree.errors import DeviceError
from jsfree.gpus import Gpu, check_dtype, visible_gpu
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import local_folder
from jsfree.run.filesystems import nearest_existing
from jsfree.run.folder import Folder
from jsfree.sizing import footprint
from jsfree.sizing.footprint import Parameters

GB = 1e9


@dataclass(frozen=True)
class Need:
    """Bytes that training takes at a path, and what for."""

    path: str
    bytes: int
    purpose: str


def check_training(config: RunConfig, policy: str, pairs: int, steps: int, output: str) -> None:
    """See that this node can train.

    Args:
        policy: reference of the model that is trained.
        pairs: selected pairs.
        steps: optimizer steps of the whole training.
        output: folder of the stage, where checkpoints go; the model goes beside it.

    Raises:
        DeviceError: a GPU, its memory or a disk does not do.
        ConfigError: more layers are to be trained than there are.
        ModelError: the model is not there.
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
    check_disk(disk_needs(parameters, config, steps, Folder(output), features))


def check_memory(gpu: Gpu, parameters: Parameters, config: RunConfig) -> None:
    """See that weights, gradients and optimizer fit a GPU, which leaves open whether activations do.

    Raises:
        DeviceError: they do not.
    """
    train, workers = config.train, config.train.resources.replicas
    needed = footprint.gpu_bytes(parameters, train.zero_stage, workers, config.captioner.dtype, train.offload)
    if needed > gpu.memory:
        raise DeviceError(
            f"training {parameters.trained / GB:.2f} of {parameters.total / GB:.2f} billion parameters with"
            f" {workers} workers and ZeRO-{train.zero_stage} takes {needed / GB:.0f} GB a GPU before activations, but"
            f" {gpu.name} has {gpu.memory / GB:.0f} GB",
            f"use more workers (train.resources.replicas),"
            f" {'' if train.zero_stage == 3 else 'train.zero_stage: 3, '}keep the optimizer in the nodes' memory"
            " (train.offload), or train adapters (train.lora) or fewer layers (train.trained_layers)",
        )


def disk_needs(parameters: Parameters, config: RunConfig, steps: int, output: Folder, features: int = 0) -> list[Need]:
    """What training writes to local disks at most at a time, beyond what a stopped one has left there.

    A worker writes its part of a checkpoint into a temporary folder, from which Ray copies it into the run; the
    model goes the same way. All workers are taken to be on one node.
    """
    train, dtype = config.train, config.captioner.dtype
    each = footprint.checkpoint_bytes(parameters, train.zero_stage, dtype)
    model = footprint.model_bytes(parameters, dtype)
    held = footprint.checkpoints_held(steps, train.checkpoint_every, train.keep)
    kept = f"{held} checkpoints of {each / GB:.1f} GB (train.keep: {train.keep}, and the one being written)"
    passing = footprint.passing_bytes(parameters, train.zero_stage, dtype, held)
    needs = [Need(tempfile.gettempdir(), passing, "one of them on its way there")]
    if output.is_local:
        written = Path(output.path).parent / "features"
        left = max(0, held * each + model - _size(Path(output.path))) + max(0, features - _size(written))
        cached = f", {features / GB:.1f} GB of images' features" if features else ""
        needs.append(Need(output.path, left, f"{kept}{cached} and the model of {model / GB:.1f} GB"))
    return needs


def check_disk(needs: list[Need]) -> None:
    """See that the filesystems have room; needs on one filesystem add up.

    Raises:
        DeviceError: one has not.
    """
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        by_device.setdefault(os.stat(nearest_existing(need.path)).st_dev, []).append(need)
    for together in by_device.values():
        free = shutil.disk_usage(nearest_existing(together[0].path)).free
        total = sum(need.bytes for need in together)
        if total > free:
            what = "; ".join(f"{need.path}: {need.bytes / GB:.1f} GB, {need.purpose}" for need in reversed(together))
            raise DeviceError(
                f"training writes up to {total / GB:.1f} GB to a disk with {free / GB:.1f} GB free ({what}); free"
                " some, put --run or TMPDIR on a larger disk, lower train.keep, or raise train.checkpoint_every"
                " (at the number of steps or above, none is written)",
                "then run it again: nothing is lost",
            )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

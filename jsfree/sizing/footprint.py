"""Bytes that training takes, computed from the number of parameters before anything is loaded.

P is the number of all parameters, T of the trained ones, W of workers, and b the bytes of a parameter in
``captioner.dtype`` (bfloat16 2, float32 4). The optimizer keeps three float32 numbers per trained parameter: master
weight and Adam's two moments.

| | ZeRO-1 | ZeRO-2 | ZeRO-3 |
|---|---|---|---|
| weights per GPU | b P | b P | b P / W |
| optimizer state per GPU | 12 T / W | 12 T / W | 12 T / W |
| gradients per GPU | b T | b T / W | b T / W |
| in addition during an optimizer step | (b + 4) T / W | (b + 4) T / W | (b + 4) T / W |
| a checkpoint, files of all workers | 12 T + b P | 12 T + b P | 12 T + b (P - T) |

Every worker loads the whole model before it is sharded, so b P is the minimum. A step adds a flat copy of the
gradients and, in bfloat16, their float32 copy. ``jsfree.sizing.memory`` adds activations, buckets and logits.
Source: DeepSpeed 0.19.8. Checkpoints are measured in tests/dpo/test_engine.py and memory on CPUs by
``benchmarks/memory.py``; GPU memory has not been measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsfree.config import Lora
from jsfree.dpo.trained import trained_names
from jsfree.models.contents import CAPTIONER, tensor_shapes
from jsfree.models.families.base import Family, typical_image
from jsfree.models.families.registry import family_of

BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_BYTES = 12
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Parameters:
    """Number of a model's parameters: all of them, and the trained ones."""

    total: int
    trained: int


def count_parameters(folder: Path, trained_layers: int | None, lora: Lora | None = None) -> Parameters:
    """Count the parameters of a captioner in a local folder from the headers of its safetensors files.

    Raises:
        ConfigError: the model has fewer layers than are to be trained.
    """
    shapes: dict[str, Sequence[int]] = {}
    for path in sorted(folder.glob(CAPTIONER.weights)):
        shapes |= tensor_shapes(path)
    return parameters_of(shapes, family_in(folder), trained_layers, lora)


def family_in(folder: Path) -> Family:
    """The family of the captioner in a local folder."""
    from transformers import AutoConfig

    return family_of(AutoConfig.from_pretrained(folder, local_files_only=True))


def parameters_of(
    shapes: Mapping[str, Sequence[int]], family: Family, trained_layers: int | None, lora: Lora | None = None
) -> Parameters:
    """Count parameters by the names and shapes of a captioner's tensors (``sizing.shapes.tensors``, or its files).

    Raises:
        ConfigError: the model has fewer layers than are to be trained.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    trained = trained_names(sizes, family, trained_layers, lora)
    if lora is not None:
        adapters = sum(lora.rank * sum(shapes[name]) for name in trained)
        return Parameters(sum(sizes.values()) + adapters, adapters)
    return Parameters(sum(sizes.values()), sum(size for name, size in sizes.items() if name in trained))


def checkpoint_bytes(parameters: Parameters, zero_stage: int, dtype: str) -> int:
    """Size of a training checkpoint, summed over the files of all workers."""
    stored = parameters.total - parameters.trained if zero_stage == 3 else parameters.total
    return OPTIMIZER_BYTES * parameters.trained + BYTES[dtype] * stored


def model_bytes(parameters: Parameters, dtype: str) -> int:
    """Size of the published model."""
    return BYTES[dtype] * parameters.total


def feature_bytes(folder: Path, dtype: str) -> int:
    """Bytes of the vision tower's features of a typical image, of a captioner in a local folder."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    family = family_of(config)
    processor = family.load_processor(folder)
    return BYTES[dtype] * family.feature_numbers(config, family.inputs(processor, config, typical_image()))


def temporary_bytes(parameters: Parameters, zero_stage: int, dtype: str, checkpoints: int) -> int:
    """Most bytes in TMPDIR at a time: a checkpoint (if any is written) or the model, until it is copied."""
    checkpoint = checkpoint_bytes(parameters, zero_stage, dtype) if checkpoints else 0
    return max(checkpoint, model_bytes(parameters, dtype))


@dataclass(frozen=True)
class GpuBytes:
    """Bytes per GPU that training takes, without activations."""

    loading: int
    """The whole model, which every GPU holds at the start, before it is sharded."""
    weights: int
    gradients: int
    optimizer: int
    step: int
    """In addition, during an optimizer step only."""

    @property
    def held(self) -> int:
        """What is held throughout."""
        return self.weights + self.gradients + self.optimizer


def training_bytes(
    parameters: Parameters, zero_stage: int, workers: int, dtype: str, offload: str = "none"
) -> GpuBytes:
    """Bytes per GPU of weights, gradients and optimizer (the table above).

    Offloaded parts are not counted: optimizer and step, or the weights too.
    """
    width, trained = BYTES[dtype], parameters.trained
    weights = 0.0 if offload == "all" else width * parameters.total / (workers if zero_stage == 3 else 1)
    gradients = width * trained / (1 if zero_stage == 1 else workers)
    on_gpu = offload == "none"
    copies = width + (GRADIENT_BYTES if width < GRADIENT_BYTES else 0)
    return GpuBytes(
        loading=math.ceil(width * parameters.total),
        weights=math.ceil(weights),
        gradients=math.ceil(gradients),
        optimizer=math.ceil(OPTIMIZER_BYTES * trained / workers) if on_gpu else 0,
        step=math.ceil(copies * trained / workers) if on_gpu else 0,
    )


def gpu_bytes(parameters: Parameters, zero_stage: int, workers: int, dtype: str, offload: str = "none") -> int:
    """Most bytes per GPU that weights, gradients and optimizer take at a time, without activations."""
    taken = training_bytes(parameters, zero_stage, workers, dtype, offload)
    return max(taken.loading, taken.held + taken.step)


def max_checkpoints(steps: int, every: int, keep: int) -> int:
    """Most checkpoints on the disk at a time in a training of ``steps``: those kept and the one being written."""
    written = (steps - 1) // every
    return min(keep + 1, written)

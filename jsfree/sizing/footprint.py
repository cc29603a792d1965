"""What training takes, in bytes, told from the number of parameters before anything is loaded.

P is the number of all parameters, T of those that are trained, W of workers, and b the bytes of a parameter in
``captioner.dtype`` (bfloat16 2, float32 4). The optimizer keeps three float32 numbers a trained parameter: master
weight and Adam's two moments.

| | ZeRO-1 | ZeRO-2 | ZeRO-3 |
|---|---|---|---|
| weights on a GPU | b P | b P | b P / W |
| optimizer state on a GPU | 12 T / W | 12 T / W | 12 T / W |
| gradients on a GPU | b T | b T / W | b T / W |
| most during an optimizer step, beside these | (b + 4) T / W | (b + 4) T / W | (b + 4) T / W |
| a checkpoint, all workers' files | 12 T + b P | 12 T + b P | 12 T + b (P - T) |

Every worker loads the whole model before it is sharded, so b P is the least. The step's share is a flat copy of the
gradients and, in bfloat16, their float32 copy. ``jsfree.sizing.memory`` adds activations, buckets and logits.
Read in DeepSpeed 0.19.8; the checkpoints are measured in tests/dpo/test_engine.py, memory on CPUs by
``benchmarks/memory.py``, GPU memory is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsfree.config import Lora
from jsfree.dpo.trained import trained_names
from jsfree.models.contents import CAPTIONER, tensor_shapes
from jsfree.models.prompts import visual_tokens

BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_BYTES = 12
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Parameters:
    """Numbers of a model's parameters: all of them, and those that are trained."""

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
    return parameters_of(shapes, trained_layers, lora)


def parameters_of(
    shapes: Mapping[str, Sequence[int]], trained_layers: int | None, lora: Lora | None = None
) -> Parameters:
    """Count parameters by the names and shapes of a captioner's tensors (``sizing.shapes.tensors``, or its files).

    Raises:
        ConfigError: the model has fewer layers than are to be trained.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    trained = trained_names(sizes, trained_layers, lora)
    if lora is not None:
        adapters = sum(lora.rank * sum(shapes[name]) for name in trained)
        return Parameters(sum(sizes.values()) + adapters, adapters)
    return Parameters(sum(sizes.values()), sum(size for name, size in sizes.items() if name in trained))


def checkpoint_bytes(parameters: Parameters, zero_stage: int, dtype: str) -> int:
    """A training checkpoint, summed over all workers' files."""
    stored = parameters.total - parameters.trained if zero_stage == 3 else parameters.total
    return OPTIMIZER_BYTES * parameters.trained + BYTES[dtype] * stored


def model_bytes(parameters: Parameters, dtype: str) -> int:
    """The published model."""
    return BYTES[dtype] * parameters.total


def feature_bytes(folder: Path, dtype: str) -> int:
    """Bytes of an image's features: the output of the vision tower of a captioner in a local folder."""
    from transformers import LlavaConfig

    config: Any = LlavaConfig.from_pretrained(folder)
    layers = config.vision_feature_layer
    width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    return int(BYTES[dtype] * visual_tokens(config) * width)


def passing_bytes(parameters: Parameters, zero_stage: int, dtype: str, checkpoints: int) -> int:
    """What lies in TMPDIR at most: a checkpoint, if any is written, or the model, on its way into the run."""
    each = checkpoint_bytes(parameters, zero_stage, dtype) if checkpoints else 0
    return max(each, model_bytes(parameters, dtype))


@dataclass(frozen=True)
class Shares:
    """What training holds of a model on a GPU, in bytes."""

    loading: int
    """The whole model, which every GPU holds at the start, however it is sharded afterwards."""
    weights: int
    gradients: int
    optimizer: int
    step: int
    """Beside the others, during an optimizer step alone."""

    @property
    def held(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer


def shares(parameters: Parameters, zero_stage: int, workers: int, dtype: str, offload: str = "none") -> Shares:
    """What weights, gradients and optimizer take on a GPU (the table above).

    What is offloaded does not count: optimizer and step, or the weights too.
    """
    each, trained = BYTES[dtype], parameters.trained
    weights = 0.0 if offload == "all" else each * parameters.total / (workers if zero_stage == 3 else 1)
    gradients = each * trained / (1 if zero_stage == 1 else workers)
    here = offload == "none"
    return Shares(
        loading=math.ceil(each * parameters.total),
        weights=math.ceil(weights),
        gradients=math.ceil(gradients),
        optimizer=math.ceil(OPTIMIZER_BYTES * trained / workers) if here else 0,
        step=math.ceil((each + (GRADIENT_BYTES if each < GRADIENT_BYTES else 0)) * trained / workers) if here else 0,
    )


def gpu_bytes(parameters: Parameters, zero_stage: int, workers: int, dtype: str, offload: str = "none") -> int:
    """The most that weights, gradients and optimizer take on a GPU, without activations."""
    of = shares(parameters, zero_stage, workers, dtype, offload)
    return max(of.loading, of.held + of.step)


def checkpoints_held(steps: int, every: int, keep: int) -> int:
    """Most checkpoints on the disk at once in a training of ``steps``: those kept and the one being written."""
    written = (steps - 1) // every
    return min(keep + 1, written)

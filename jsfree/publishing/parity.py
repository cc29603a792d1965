"""Checks that a LoRA adapter and the weights it was merged into are the same model, by their logits on one prompt.

Shape suffixes: L positions of the prompt, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from jsfree.config import CaptionerSettings, ModelFiles
from jsfree.errors import ModelError
from jsfree.models.contents import ADAPTER
from jsfree.models.loading import Captioner, load_captioner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = 7
"""Linear projections in a layer of the language model."""


def tolerance(dtype: str, layers: int) -> float:
    """Largest difference allowed between the logits of the two, relative to the largest logit.

    Merged, W + BA is rounded once per weight; separate, Wx and BAx are rounded once per layer and then added. In
    bfloat16 a rounding error is up to 2^-9 of the result, with either sign: those of 7 projections in each of 40 layers
    add up to about sqrt(280) x 2^-9 = 3e-2; twice as much is allowed. (The 3 layers of MiniWorld's captioner should
    give 9e-3; 6e-3 was measured.) In float32 this would be 5e-7, the order of summation dominates (4e-7 measured),
    and 1e-4 allows for wider layers.
    """
    return 2 * math.sqrt(PROJECTIONS * layers) * 2**-9 if dtype == "bfloat16" else 1e-4


@dataclass(frozen=True)
class Parity:
    """Differences of logits, relative to the largest logit.

    ``effect`` is the difference between the model with and without the adapter: if it is below the tolerance, a small
    ``difference`` proves little. ``same_token``: the share of positions with the same most probable token.
    """

    dtype: str
    difference: float
    tolerance: float
    effect: float
    same_token: float

    @property
    def holds(self) -> bool:
        """Whether both are the same model, up to rounding."""
        return self.difference <= self.tolerance


def parity(
    base: str, folder: Path, settings: CaptionerSettings, prompt: str, files: ModelFiles, device: str = "cpu"
) -> Parity:
    """Compare the base model plus the adapter of ``folder`` with the merged weights of ``folder``.

    Args:
        base: reference of the model that training started from.

    Raises:
        ModelError: a model or the adapter cannot be loaded.
    """
    from peft import PeftModel

    dtype = settings.dtype
    loaded = load_captioner(base, device, dtype, settings.preprocessing, files=files)
    without_LV = _logits(loaded.model, loaded, prompt)
    try:
        adapted: Any = PeftModel.from_pretrained(loaded.model, str(folder / ADAPTER), local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the adapter in {folder / ADAPTER} does not fit {base!r}: {error}", "train the model again"
        ) from error
    apart_LV = _logits(adapted.eval(), loaded, prompt)
    del loaded, adapted
    whole = load_captioner(str(folder), device, dtype, settings.preprocessing, files=files)
    merged_LV = _logits(whole.model, whole, prompt)
    largest = float(apart_LV.abs().max())
    return Parity(
        dtype,
        float((merged_LV - apart_LV).abs().max()) / largest,
        tolerance(dtype, int(whole.model.config.get_text_config().num_hidden_layers)),
        float((apart_LV - without_LV).abs().max()) / largest,
        float((merged_LV.argmax(-1) == apart_LV.argmax(-1)).float().mean()),
    )


def require_parity(measured: Parity, folder: str) -> None:
    """Check that the adapter in ``folder`` is the published model.

    Raises:
        ModelError: the logits differ by more than rounding.
    """
    if not measured.holds:
        raise ModelError(
            f"{folder}: {ADAPTER}/ and the merged weights are different models: their logits differ by"
            f" {measured.difference:.1e} of the largest, more than {measured.tolerance:.0e} ({measured.dtype})",
            "one of them is from another training: run it again with --restart train",
        )


def _logits(model: PreTrainedModel, captioner: Captioner, prompt: str) -> torch.Tensor:
    """Logits of all positions of a prompt with an image, (L, V), float32 on the CPU."""
    image = captioner.inputs(Image.linear_gradient("L").convert("RGB"))
    ids = captioner.prompt_ids(prompt, image)
    with torch.inference_mode():
        inputs = captioner.forward_arguments(ids, [image])
        logits_1LV = model(input_ids=torch.tensor([ids], device=captioner.device), **inputs).logits
    logits_LV: torch.Tensor = logits_1LV[0].float().cpu()
    return logits_LV

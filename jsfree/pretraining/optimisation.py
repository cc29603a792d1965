"""The optimizer of both tiny models: Muon on the hidden matrices, AdamW on all other parameters.

Muon reaches the same loss in about half the steps.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jsfree.schedules import warmup_cosine

Progress = Callable[[str, int, int, float], None]
"""Called as ``progress(part, step, steps, loss)`` after every step."""
WARMUP = 40
"""Steps of the learning rate's warm-up."""


class Optimiser:
    """Both optimizers with gradient clipping and one schedule: linear warm-up, then a cosine to zero."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        steps: int,
        matrix_rate: float,
        other_rate: float,
    ) -> None:
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        matrices = [parameter for name, parameter in trained if _is_hidden_matrix(name, parameter)]
        others = [parameter for name, parameter in trained if not _is_hidden_matrix(name, parameter)]
        self.parameters = [*matrices, *others]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.02, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.02),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, steps, WARMUP))
            for optimiser in self.optimisers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """Update the parameters with the gradient of ``loss``."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        for schedule in self.schedules:
            schedule.step()


def batches(size: int, batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless batches of row numbers, (batch,): each pass over all rows has a new order."""
    while True:
        order = rng.permutation(size)
        for start in range(0, size - batch + 1, batch):
            yield order[start : start + batch]


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    outer = ("embed", "lm_head", "logit", "heads.")
    return parameter.ndim == 2 and not any(word in name for word in outer)

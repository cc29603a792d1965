"""The training loop of one worker: DPO on selected pairs with a DeepSpeed engine, checkpointed.

It knows torch.distributed, which its caller has initialised, and no Ray: checkpoints and progress leave
through the ``Hooks`` it is given.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jsfree.config import RunConfig
from jsfree.dpo import reference_logps
from jsfree.dpo.batching import PreferenceBatch, collate, micro_batches, order_of_epoch, pair_logps
from jsfree.dpo.engine import gathered_weights, start_engine
from jsfree.dpo.loss import DPOTerms, PairLogps, dpo
from jsfree.errors import StageError
from jsfree.models import load_captioner
from jsfree.publish import publish_captioner
from jsfree.schemas import SelectedPair
from jsfree.storage import Folder

log = logging.getLogger(__name__)

LN2_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
Step = dict[str, float]


@dataclass(frozen=True)
class Models:
    """References of the model a round starts from and of its frozen reference."""

    policy: str
    reference: str


@dataclass(frozen=True)
class Hooks:
    """How a worker reaches its surroundings.

    ``progress`` gets all steps so far and how many there will be (rank 0 only); ``save`` gets a folder with this
    rank's part of a checkpoint and the step's number (every rank); ``restore`` is the folder of a checkpoint to
    go on from.
    """

    progress: Callable[[Sequence[Step], int], None]
    save: Callable[[str, int], None]
    restore: str | None


def steps_per_epoch(pairs: int, config: RunConfig) -> int:
    """Optimizer steps of an epoch; pairs that do not fill a step wait for another epoch's order.

    Raises:
        StageError: there are fewer pairs than one step takes.
    """
    steps = pairs // config.train.pairs_per_step
    if steps == 0:
        raise StageError(
            f"{pairs} selected pairs do not fill one step of {config.train.pairs_per_step};"
            " use more images (source.count), keep more splits, or lower train.pairs_per_step"
        )
    return steps


def learning_rate(step: int, total: int, config: RunConfig) -> float:
    """Linear warm-up, then a cosine to zero at the end of training."""
    warmup = max(1, round(config.train.warmup_fraction * total))
    if step < warmup:
        return config.train.learning_rate * (step + 1) / warmup
    return config.train.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(
    config: RunConfig,
    pairs: Sequence[SelectedPair],
    models: Models,
    folders: tuple[Folder, Folder],
    hooks: Hooks,
    device: str,
) -> None:
    """Train the policy and publish it.

    Args:
        pairs: the selected pairs, in one order on all workers.
        folders: where reference log-probabilities are kept, and where the model is published.

    Raises:
        StageError: too few pairs, or a loss at the first step that is not ln 2.
    """
    reference_folder, model_folder = folders
    steps = steps_per_epoch(len(pairs), config)
    torch.manual_seed(config.seed)
    trainer = _Trainer(config, pairs, models, device)
    trainer.prepare_reference(reference_folder, models)
    history = trainer.restore(hooks.restore)
    total = steps * config.train.epochs
    for step in range(len(history), total):
        epoch, within = divmod(step, steps)
        history.append(trainer.step(step, epoch, within, total))
        if step == 0:
            _check_first_loss(history[0], config, models)
        if trainer.rank == 0:
            hooks.progress(history, total)
        if (step + 1) % config.train.checkpoint_every == 0 and step + 1 < total:
            trainer.save(history, hooks)
    trainer.publish(model_folder)


class _Trainer:
    """Engine, pairs and reference of one worker."""

    def __init__(self, config: RunConfig, pairs: Sequence[SelectedPair], models: Models, device: str) -> None:
        self.config = config
        self.pairs = pairs
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        settings = config.captioner
        self.captioner = load_captioner(
            models.policy, device, settings.dtype, settings.preprocessing, files=config.models
        )
        self.engine = start_engine(self.captioner, config, self.world)
        self.micro: int = self.engine.train_micro_batch_size_per_gpu()
        self.reference: reference_logps.ReferenceLogps = {}

    def prepare_reference(self, folder: Folder, models: Models) -> None:
        """Have the reference's log-probabilities ready."""
        forward: Any = self.engine
        if models.reference != models.policy:
            settings, files = self.config.captioner, self.config.models
            device = str(self.captioner.device)
            forward = load_captioner(
                models.reference, device, settings.dtype, settings.preprocessing, files=files
            ).model
        self.reference = reference_logps.reference_logps(
            folder, self.pairs, self.captioner, forward, self.config.source, self.micro
        )

    def step(self, step: int, epoch: int, within: int, total: int) -> Step:
        """One optimizer step; its figures, averaged over all pairs of the step."""
        started = time.perf_counter()
        rate = learning_rate(step, total, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        order = order_of_epoch(len(self.pairs), self.config.seed, epoch)
        sums = torch.zeros(len(_FIGURES), dtype=torch.float64)
        for indices in micro_batches(
            order, within, self.config.train.pairs_per_step, self.micro, self.rank, self.world
        ):
            batch = collate([self.pairs[index] for index in indices], self.captioner, self.config.source)
            sums += self._micro_step(batch)
        moved = sums.to(self.captioner.device, torch.float32)
        dist.all_reduce(moved)
        figures = dict(zip(_FIGURES, moved.tolist(), strict=True))
        count = figures.pop("pairs")
        tokens = figures.pop("tokens")
        means = {name: value / count for name, value in figures.items()}
        return {
            "step": step,
            "epoch": epoch,
            **means,
            "margin": means["chosen_reward"] - means["rejected_reward"],
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "learning_rate": rate,
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
        }

    def _micro_step(self, batch: PreferenceBatch) -> torch.Tensor:
        """Forward and backward of one micro batch, and the optimizer where a step is full; summed figures."""
        policy = pair_logps(self.engine, batch)
        terms = dpo(
            policy,
            reference_logps.select(self.reference, batch.sample_ids, self.captioner.device),
            self.config.train.beta,
        )
        loss = terms.loss.mean()
        if self.config.train.sft_weight:
            lengths = batch.chosen.completion.sum(-1)
            loss = loss + self.config.train.sft_weight * (-policy.chosen / lengths).mean()
        self.engine.backward(loss)
        self.engine.step()
        return _summed(terms, policy, batch)

    def save(self, history: Sequence[Step], hooks: Hooks) -> None:
        """Write this rank's part of a checkpoint and hand it over."""
        with tempfile.TemporaryDirectory() as directory:
            self.engine.save_checkpoint(directory, tag="state", client_state={"history": list(history)})
            hooks.save(directory, len(history))

    def restore(self, directory: str | None) -> list[Step]:
        """Steps done so far; weights and optimizer come from the checkpoint, if there is one."""
        if directory is None:
            return []
        _, state = self.engine.load_checkpoint(directory, tag="state")
        history: list[Step] = state["history"]
        log.info("going on from step %d", len(history))
        return history

    def publish(self, folder: Folder) -> None:
        """Rank 0 publishes the trained model; the others help to gather it."""
        weights = gathered_weights(self.engine)
        if self.rank == 0:
            with tempfile.TemporaryDirectory() as directory:
                publish_captioner(self.captioner.model, self.captioner.processor, directory, weights)
                folder.remove()  # files of an attempt that was broken off must not mix with these
                folder.upload(str(Path(directory)))
        dist.barrier()


_FIGURES = (
    "pairs", "tokens", "loss", "chosen_reward", "rejected_reward", "accuracy", "chosen_logp", "rejected_logp",
)  # fmt: skip


def _summed(terms: DPOTerms, policy: PairLogps, batch: PreferenceBatch) -> torch.Tensor:
    """The figures of a micro batch, summed over its pairs, in the order of ``_FIGURES``."""
    per_pair = (
        terms.loss.detach(),
        terms.chosen_reward,
        terms.rejected_reward,
        (terms.chosen_reward > terms.rejected_reward).float(),
        policy.chosen.detach(),
        policy.rejected.detach(),
    )
    counts = [len(batch.sample_ids), batch.completion_tokens]
    return torch.tensor([*counts, *(float(values.sum()) for values in per_pair)], dtype=torch.float64)


def _check_first_loss(step: Step, config: RunConfig, models: Models) -> None:
    """Before any update policy and reference are one model, so the DPO loss must be ln 2."""
    if models.policy != models.reference:
        return
    if abs(step["loss"] - math.log(2)) > LN2_TOLERANCE[config.captioner.dtype]:
        raise StageError(
            f"the loss at step 0 is {step['loss']:.5f}, not ln 2 = {math.log(2):.5f}: policy and reference disagree"
            " before training; the reference table belongs to another model (--restart train)"
        )

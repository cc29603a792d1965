"""The training loop of one worker: DPO on selected pairs with a DeepSpeed engine, checkpointed.

It knows torch.distributed, which its caller has initialised, and no Ray: checkpoints and progress leave
through the ``Hooks`` it is given.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from jsfree.config import RunConfig
from jsfree.dpo import reference_logps
from jsfree.dpo.batching import PairBatch, collate, micro_batches, order_of_epoch, prefetched
from jsfree.dpo.engine import gathered_weights, start_engine
from jsfree.dpo.features import VisionFeatures
from jsfree.dpo.figures import FIGURES, peak_memory, summed
from jsfree.dpo.lora import merged
from jsfree.dpo.loss import Lengths, PairLogps, anchor, dpo, first_loss
from jsfree.dpo.pairs import PairIndex, Pairs, Subset
from jsfree.dpo.policy import PairModel
from jsfree.dpo.step_log import Step
from jsfree.dpo.validation import Validation
from jsfree.errors import StageError
from jsfree.models.contents import ADAPTER
from jsfree.models.loading import DTYPES, load_captioner
from jsfree.models.references import hub_model
from jsfree.models.replacing import replace_folder
from jsfree.models.saving import publish_captioner
from jsfree.run.folder import Folder

log = logging.getLogger(__name__)

FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""By how much the first loss may differ from ln 2, at beta 0.1."""
WORKERS = "workers.json"
"""File of a checkpoint with the number of workers whose shards it holds."""
Batch = tuple[Sequence[int], PairBatch]
"""Positions of pairs, and the pairs as tensors."""
HELD_OUT = -1
"""The epoch whose order draws the pairs that are held out."""


@dataclass(frozen=True)
class Models:
    """References of the model a round starts from and of its frozen reference, and the latter's fingerprint."""

    policy: str
    reference: str
    reference_fingerprint: str = ""


@dataclass(frozen=True)
class Folders:
    """Where training keeps the reference's log-probabilities and images' features, and publishes the model."""

    reference: Folder
    features: Folder
    model: Folder


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

    Args:
        pairs: selected pairs, those that are held out included.

    Raises:
        StageError: there are fewer pairs to train on than one step takes.
    """
    held_out = config.train.validation.pairs
    steps = (pairs - held_out) // config.train.pairs_per_step
    if steps < 1:
        without = f" without the {held_out} that are held out (train.validation.pairs)" if held_out else ""
        raise StageError(
            f"{pairs} selected pairs{without} do not fill one step of {config.train.pairs_per_step};"
            " use more images (source.count), keep more splits, or lower train.pairs_per_step"
        )
    return steps


def first_loss_tolerance(config: RunConfig) -> float:
    """By how much the first loss may differ from ``loss.first_loss``.

    In bfloat16 the noise is that of the margin, which beta weighs; that of ``ipo`` grows with 1 / beta.
    """
    tolerance, train = FIRST_LOSS_TOLERANCE[config.captioner.dtype], config.train
    if train.loss == "ipo":
        return tolerance / train.beta
    return tolerance * max(1.0, train.beta / 0.1) if config.captioner.dtype == "bfloat16" else tolerance


def learning_rate(step: int, total: int, config: RunConfig) -> float:
    """Linear warm-up, then a cosine to zero at the end of training."""
    warmup = max(1, round(config.train.warmup_fraction * total))
    if step < warmup:
        return config.train.learning_rate * (step + 1) / warmup
    return config.train.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(
    config: RunConfig,
    pairs: Pairs,
    models: Models,
    folders: Folders,
    hooks: Hooks,
    device: str,
) -> None:
    """Train the policy and publish it.

    Args:
        pairs: the selected pairs, in one order on all workers: a list, or a table that is read when a batch needs it.

    Raises:
        StageError: too few pairs, or a loss at the first step that is not that of equal models.
    """
    steps = steps_per_epoch(len(pairs), config)
    trained, held_out = split(pairs, config)
    torch.manual_seed(config.seed)
    trainer = _Trainer(config, trained, models, device)
    trainer.prepare(held_out, folders, models)
    history = trainer.restore(hooks.restore)
    total = steps * config.train.epochs
    guard = Validation(config.train, history)
    batches = trainer.batches(len(history), total, steps)
    for step in range(len(history), total):
        figures = trainer.step(batches, step, steps, total)
        if step == 0:
            _check_first_loss(figures, config, models)
        if len(held_out) and guard.due(step, total):
            figures |= trainer.validated()
        history.append(figures)
        stops = guard.stops(figures)
        ended = stops or step + 1 == total
        if trainer.rank == 0:
            hooks.progress(history, len(history) if ended else total)
        if guard.publishes(figures, ended=ended):
            trainer.publish(folders.model)
        if ended:
            guard.check()
            break
        if (step + 1) % config.train.checkpoint_every == 0:
            trainer.save(history, hooks)


def split(pairs: Pairs, config: RunConfig) -> tuple[Subset, Subset]:
    """The pairs that are trained on, and those that are held out (``train.validation.pairs``), drawn by the seed."""
    drawn = order_of_epoch(len(pairs), config.seed, HELD_OUT)[: config.train.validation.pairs]
    held_out = np.zeros(len(pairs), np.bool_)
    held_out[drawn] = True
    return Subset(pairs, np.flatnonzero(~held_out)), Subset(pairs, np.flatnonzero(held_out))


class _Trainer:
    """Engine, pairs and reference of one worker."""

    def __init__(self, config: RunConfig, pairs: Subset, models: Models, device: str) -> None:
        self.config = config
        self.policy = models.policy
        self.pairs = pairs
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        settings = config.captioner
        self.captioner = load_captioner(
            models.policy, device, settings.dtype, settings.preprocessing, files=config.models
        )
        self.engine = start_engine(self.captioner, config, self.world)
        self.micro: int = self.engine.train_micro_batch_size_per_gpu()
        self.features: VisionFeatures | None = None

    def prepare(self, held_out: Subset, folders: Folders, models: Models) -> None:
        """Have the pairs' index, images' features and the reference's log-probabilities ready."""
        settings, files = self.config.captioner, self.config.models
        pairs = self.pairs.table
        index = PairIndex.of(pairs, self.captioner)
        self.lengths = index.lengths[self.pairs.positions]
        self.held_out = self._share(held_out, index)
        origin = reference_logps.origin(
            models.reference_fingerprint or models.reference, settings.dtype, settings.preprocessing, index.digest
        )
        if self.config.train.cache_vision_features:
            features = VisionFeatures(folders.features, origin)  # the policy's tower is the reference's: it is frozen
            features.prepare(pairs, self._load, self._tower, self.micro)
            self.features = features

        @cache
        def forward() -> Callable[[PairBatch], PairLogps]:
            """The policy before its first step, or a model that is loaded only where it is needed."""
            if models.reference == models.policy:
                engine: Callable[[PairBatch], PairLogps] = self.engine
                return engine
            device = str(self.captioner.device)
            other = load_captioner(models.reference, device, settings.dtype, settings.preprocessing, files=files)
            return PairModel(other.model)

        self.reference = reference_logps.reference_logps(
            folders.reference,
            pairs,
            index.lengths,
            origin,
            self._load,
            lambda batch: forward()(self._placed(batch)),
            self.micro,
        )

    def _share(self, held_out: Subset, index: PairIndex) -> list[int]:
        """The positions of the held-out pairs that this worker looks at, longest first."""
        ids = {int(position): held_out[at]["sample_id"] for at, position in enumerate(held_out.positions)}
        ordered = sorted(ids, key=lambda position: (-index.lengths[position], ids[position]))
        return ordered[self.rank :: self.world]

    def batches(self, first: int, total: int, steps: int) -> Iterator[Batch]:
        """This worker's micro batches of all steps from ``first`` on, one ahead, ``steps`` an epoch."""
        size, seed = self.config.train.pairs_per_step, self.config.seed

        def chosen() -> Iterator[list[int]]:
            for epoch in range(first // steps, -(-total // steps)):
                order = order_of_epoch(len(self.pairs), seed, epoch)
                for step in range(max(first, epoch * steps), min(total, (epoch + 1) * steps)):
                    within = step - epoch * steps
                    taken = order[within * size : (within + 1) * size]
                    for indices in micro_batches(self.lengths, taken, self.micro, self.rank, self.world):
                        yield self.pairs.positions[indices].tolist()

        return self._prefetched(chosen())

    def step(self, batches: Iterator[Batch], step: int, steps: int, total: int) -> Step:
        """One optimizer step on the next of ``batches``; its figures, averaged over all pairs of the step."""
        started = time.perf_counter()
        rate = learning_rate(step, total, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        for _ in range(self.config.train.pairs_per_step // (self.micro * self.world)):
            positions, batch = next(batches)
            sums += self._micro_step(positions, self._placed(batch))
        means, tokens = self._means(sums)
        seconds = time.perf_counter() - started
        return {
            "step": step,
            "epoch": step // steps,
            **means,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "learning_rate": rate,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "memory": peak_memory(self.captioner.device),
            "seconds": seconds,
        }

    def validated(self) -> Step:
        """Figures of the held-out pairs, averaged over them."""
        mine = self.held_out
        sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        parts = (mine[at : at + self.micro] for at in range(0, len(mine), self.micro))
        for positions, batch in self._prefetched(parts):
            with torch.no_grad():
                placed = self._placed(batch)
                sums += self._terms(positions, placed, self.engine(placed))[1]
        means, _ = self._means(sums)
        return {f"validation_{name}": means[name] for name in ("loss", "accuracy", "margin", "chosen_reward")}

    def _micro_step(self, positions: Sequence[int], batch: PairBatch) -> torch.Tensor:
        """Forward and backward of one micro batch, and the optimizer where a step is full; summed figures."""
        policy = self.engine(batch)
        loss, sums = self._terms(positions, batch, policy)
        self.engine.backward(loss)
        self.engine.step()
        return sums

    def _terms(
        self, positions: Sequence[int], batch: PairBatch, policy: PairLogps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and the batch's summed figures."""
        settings, device = self.config.train, self.captioner.device
        chosen, rejected = torch.tensor(batch.lengths, device=device).chunk(2)
        lengths = Lengths(chosen, rejected)
        terms = dpo(policy, self.reference.of(positions, device), lengths, settings)
        loss = terms.loss.mean()
        if settings.sft_weight:
            loss = loss + settings.sft_weight * anchor(policy, lengths).mean()
        return loss, summed(terms, policy, lengths, settings.beta)

    def _means(self, sums: torch.Tensor) -> tuple[Step, float]:
        """Figures averaged over the pairs of all workers, and the number of completion tokens."""
        moved = sums.to(self.captioner.device, torch.float32)
        dist.all_reduce(moved)
        figures = dict(zip(FIGURES, moved.tolist(), strict=True))
        count = figures.pop("pairs")
        means = {name: value / count for name, value in figures.items()}
        tokens = figures["chosen_length"] + figures["rejected_length"]
        return {**means, "margin": means["chosen_reward"] - means["rejected_reward"]}, tokens

    def _prefetched(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of the pairs at some positions, one ahead, and these positions."""
        return prefetched(lambda positions: (positions, self._load(positions)), parts)

    def _load(self, positions: Sequence[int]) -> PairBatch:
        """A batch on the CPU; of any thread."""
        pairs = [self.pairs.table[position] for position in positions]
        features = None if self.features is None else [self.features.of(pair) for pair in pairs]
        return collate(pairs, self.captioner, self.config.source, features)

    def _placed(self, batch: PairBatch) -> PairBatch:
        return batch.to(self.captioner.device, DTYPES[self.config.captioner.dtype])

    def _tower(self, pixels: torch.Tensor | None) -> torch.Tensor:
        assert pixels is not None
        placed = pixels.to(self.captioner.device, DTYPES[self.config.captioner.dtype])
        features: torch.Tensor = self.engine.module.features(placed)
        return features

    def save(self, history: Sequence[Step], hooks: Hooks) -> None:
        """Write this rank's part of a checkpoint and hand it over."""
        with tempfile.TemporaryDirectory() as directory:
            self.engine.save_checkpoint(directory, tag="state", client_state={"history": list(history)})
            if self.rank == 0:
                (Path(directory) / WORKERS).write_text(json.dumps(self.world), encoding="utf-8")
            hooks.save(directory, len(history))

    def restore(self, directory: str | None) -> list[Step]:
        """Steps done so far; weights and optimizer come from the checkpoint, if there is one.

        Raises:
            StageError: another number of workers wrote it.
        """
        if directory is None:
            return []
        written_by = json.loads((Path(directory) / WORKERS).read_text(encoding="utf-8"))
        if written_by != self.world:
            raise StageError(
                f"the checkpoint that training would go on from holds the shards of {written_by} workers, not of"
                f" {self.world}",
                f"set train.resources.replicas: {written_by}, or begin anew with --restart train",
            )
        _, state = self.engine.load_checkpoint(directory, tag="state")
        history: list[Step] = state["history"]
        log.info("going on from step %d", len(history))
        return history

    def publish(self, folder: Folder) -> None:
        """Rank 0 publishes the trained model; the others help to gather it."""
        weights = gathered_weights(self.engine)
        if self.rank == 0:
            with tempfile.TemporaryDirectory() as directory:
                if self.config.train.lora is not None:
                    settings = self.config.captioner
                    base = load_captioner(self.policy, "cpu", settings.dtype, files=self.config.models)
                    known = hub_model(self.policy, self.config.models)
                    weights = merged(weights, base.model, self.config.train.lora, Path(directory) / ADAPTER, known)
                publish_captioner(self.captioner.model, self.captioner.processor, directory, weights)
                replace_folder(folder, Path(directory))
        dist.barrier()


def _check_first_loss(step: Step, config: RunConfig, models: Models) -> None:
    """Before any update policy and reference are one model, so the DPO loss must be ln 2 (another for ``ipo``)."""
    expected = first_loss(config.train)
    if models.policy != models.reference:
        return
    if abs(step["loss"] - expected) > first_loss_tolerance(config):
        raise StageError(
            f"the loss at step 0 is {step['loss']:.5f}, not {expected:.5f}: policy and reference disagree before"
            " training",
            "the reference table belongs to another model (--restart train)",
        )

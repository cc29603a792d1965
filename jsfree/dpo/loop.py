"""The training loop of one worker: DPO or NLL on selected pairs with a DeepSpeed engine, with checkpoints.

The caller initialises torch.distributed. The loop does not import Ray: checkpoints and progress go through ``Hooks``.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from jsfree.config import RunConfig
from jsfree.dpo import reference_logps
from jsfree.dpo.batching import PAIR, PairBatch, collate, epoch_order, image_inputs, micro_batches, prefetch
from jsfree.dpo.engine import gather_weights, start_engine
from jsfree.dpo.features import VisionFeatures
from jsfree.dpo.figures import Sums, add_sums, count_completions, mean_figures, peak_memory, sum_nll, sum_preference
from jsfree.dpo.lora import merge_adapters
from jsfree.dpo.loss import Lengths, PairLogps, initial_loss, mean_nll, preference_loss
from jsfree.dpo.pairs import PairIndex, Pairs, Subset
from jsfree.dpo.policy import PairModel
from jsfree.dpo.step_log import Step
from jsfree.dpo.validation import EarlyStopping
from jsfree.errors import StageError
from jsfree.models.contents import ADAPTER
from jsfree.models.families.base import ImageInputs, Tensors, moved
from jsfree.models.loading import DTYPES, load_captioner
from jsfree.models.references import hub_model
from jsfree.models.replacing import replace_folder
from jsfree.models.saving import publish_captioner
from jsfree.run.folder import Folder
from jsfree.schedules import warmup_cosine
from jsfree.schemas import Role

log = logging.getLogger(__name__)

INITIAL_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest allowed difference of the first loss from ln 2, by dtype, at beta 0.1."""
WORKERS = "workers.json"
"""File of a checkpoint with the number of workers whose shards it holds."""
HELD_OUT_EPOCH = -1
"""The epoch whose order draws the held-out pairs."""
VALIDATION_FIGURES = ("loss", "accuracy", "margin", "chosen_reward", "nll")
Batch = tuple[Sequence[int], PairBatch]
"""Positions of pairs, and the pairs as tensors."""


@dataclass(frozen=True)
class Models:
    """References of the policy's start model and of the frozen reference model, and the fingerprint of the latter."""

    policy: str
    reference: str
    reference_fingerprint: str = ""


@dataclass(frozen=True)
class Folders:
    """Folders of reference log-probabilities, cached vision features and the published model."""

    reference: Folder
    features: Folder
    model: Folder


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop, and the checkpoint it resumes from."""

    progress: Callable[[Sequence[Step], int], None]
    """Receives all steps so far and the total number of steps; called on rank 0 only."""
    save: Callable[[str, int], None]
    """Receives the folder with this rank's part of a checkpoint and the number of steps done; called on every rank."""
    restore: str | None
    """Folder of the checkpoint to resume from."""


def steps_per_epoch(pairs: int, config: RunConfig) -> int:
    """Optimizer steps per epoch; pairs that do not fill a last step are left out of that epoch.

    Args:
        pairs: number of selected pairs, including held-out ones.
        config: the run's settings.

    Raises:
        StageError: there are fewer training pairs than ``train.pairs_per_step``.
    """
    held_out = config.train.validation.pairs
    steps = (pairs - held_out) // config.train.pairs_per_step
    if steps < 1:
        without = f" without the {held_out} that are held out (train.validation.pairs)" if held_out else ""
        raise StageError(
            f"{pairs} selected pairs{without} do not fill one step of {config.train.pairs_per_step}",
            "use more images (source.count), keep more splits, or lower train.pairs_per_step",
        )
    return steps


def initial_loss_tolerance(config: RunConfig) -> float:
    """Largest allowed difference of the first loss from ``loss.initial_loss``.

    In bfloat16 the margin is noisy, and the loss scales that noise by beta. The noise of ``ipo`` grows with 1 / beta.
    """
    tolerance, train = INITIAL_LOSS_TOLERANCE[config.captioner.dtype], config.train
    if train.loss == "ipo":
        return tolerance / train.beta
    return tolerance * max(1.0, train.beta / 0.1) if config.captioner.dtype == "bfloat16" else tolerance


def learning_rate(step: int, total: int, config: RunConfig) -> float:
    """Learning rate at ``step`` of ``total``: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(config.train.warmup_fraction * total))
    return config.train.learning_rate * warmup_cosine(step, total, warmup)


def train(config: RunConfig, pairs: Pairs, models: Models, folders: Folders, hooks: Hooks, device: str) -> None:
    """Train the policy and publish it; every worker must call.

    Args:
        config: the run's settings.
        pairs: the selected pairs, in the same order on all workers.
        models: where policy and reference start.
        folders: what training reads and writes.
        hooks: callbacks, and the checkpoint to resume from.
        device: torch device of this worker.

    Raises:
        StageError: there are too few pairs, or the loss at the first step is not that of equal models.
    """
    steps = steps_per_epoch(len(pairs), config)
    training, held_out = split_held_out(pairs, config)
    torch.manual_seed(config.seed)
    trainer = Trainer(config, training, models, device)
    trainer.prepare(held_out, folders, models)
    history = trainer.load_checkpoint(hooks.restore)
    total = steps * config.train.epochs
    stopping = EarlyStopping(config.train, history)
    batches = trainer.batches(len(history), total, steps)
    for number in range(len(history), total):
        step = trainer.step(batches, number, steps, total)
        if number == 0:
            _check_initial_loss(step, config, models)
        if len(held_out) and stopping.is_due(number, total):
            step |= trainer.validate()
        history.append(step)
        stop = stopping.should_stop(step)
        is_last = stop or number + 1 == total
        if trainer.rank == 0:
            hooks.progress(history, len(history) if is_last else total)
        if stopping.should_publish(step, is_last=is_last):
            trainer.publish(folders.model)
        if is_last:
            stopping.check_finite()
            break
        if (number + 1) % config.train.checkpoint_every == 0:
            trainer.save_checkpoint(history, hooks)


def split_held_out(pairs: Pairs, config: RunConfig) -> tuple[Subset, Subset]:
    """Split into training pairs and held-out pairs (``train.validation.pairs``), drawn by the seed."""
    drawn = epoch_order(len(pairs), config.seed, HELD_OUT_EPOCH)[: config.train.validation.pairs]
    held_out = np.zeros(len(pairs), np.bool_)
    held_out[drawn] = True
    return Subset(pairs, np.flatnonzero(~held_out)), Subset(pairs, np.flatnonzero(held_out))


class Trainer:
    """Engine, pairs and reference log-probabilities of one worker."""

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
        self.roles = config.trained_captions

    def prepare(self, held_out: Subset, folders: Folders, models: Models) -> None:
        """Load or compute the pairs' index, the cached vision features and the reference log-probabilities."""
        settings, files = self.config.captioner, self.config.models
        pairs = self.pairs.table
        index = PairIndex.of(pairs, self.captioner, self.roles)
        self.lengths = index.lengths[self.pairs.positions]
        self.held_out = self._own_share(held_out, index)
        origin = reference_logps.origin(
            models.reference_fingerprint or models.reference, settings.dtype, settings.preprocessing, index.digest
        )
        if self.config.train.cache_vision_features:
            # The vision tower is frozen, so policy and reference share the features.
            features = VisionFeatures(folders.features, origin)
            features.compute_missing(pairs, self._load_images, self._vision_features, self.micro)
            self.features = features

        if self.config.train.objective == "nll":
            return

        @cache
        def reference() -> Callable[[PairBatch], dict[Role, torch.Tensor]]:
            """The policy before its first step, or another model, which is loaded on first use."""
            if models.reference == models.policy:
                engine: Callable[[PairBatch], dict[Role, torch.Tensor]] = self.engine
                return engine
            device = str(self.captioner.device)
            other = load_captioner(models.reference, device, settings.dtype, settings.preprocessing, files=files)
            return PairModel(other.model)

        self.reference = reference_logps.load_or_compute(
            folders.reference,
            pairs,
            index.lengths,
            origin,
            partial(self._load_batch, roles=PAIR),
            lambda batch: PairLogps.of(reference()(self._to_device(batch))),
            self.micro,
        )

    def _own_share(self, held_out: Subset, index: PairIndex) -> list[int]:
        """Positions of the held-out pairs that this worker evaluates, longest first."""
        ids = {int(position): pair["sample_id"] for position, pair in zip(held_out.positions, held_out, strict=True)}
        ordered = sorted(ids, key=lambda position: (-index.lengths[position], ids[position]))
        return ordered[self.rank :: self.world]

    def batches(self, first: int, total: int, steps: int) -> Iterator[Batch]:
        """This worker's micro batches of the steps ``first`` to ``total``, with ``steps`` per epoch; prefetched."""
        size, seed = self.config.train.pairs_per_step, self.config.seed

        def positions() -> Iterator[list[int]]:
            for epoch in range(first // steps, -(-total // steps)):
                order = epoch_order(len(self.pairs), seed, epoch)
                for step in range(max(first, epoch * steps), min(total, (epoch + 1) * steps)):
                    start = (step - epoch * steps) * size
                    step_indices = order[start : start + size]
                    for indices in micro_batches(self.lengths, step_indices, self.micro, self.rank, self.world):
                        yield self.pairs.positions[indices].tolist()

        return self._prefetch(positions())

    def step(self, batches: Iterator[Batch], step: int, steps: int, total: int) -> Step:
        """One optimizer step on the next of ``batches``; its figures, averaged over all pairs of the step."""
        started = time.perf_counter()
        rate = learning_rate(step, total, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        sums: Sums = {}
        for _ in range(self.config.train.pairs_per_step // (self.micro * self.world)):
            positions, batch = next(batches)
            sums = add_sums(sums, self._micro_step(positions, self._to_device(batch)))
        means, tokens = mean_figures(sums)
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

    def validate(self) -> Step:
        """Figures of the held-out pairs, averaged over them."""
        own = self.held_out
        sums: Sums = {}
        parts = (own[start : start + self.micro] for start in range(0, len(own), self.micro))
        for positions, batch in self._prefetch(parts):
            with torch.no_grad():
                moved = self._to_device(batch)
                sums = add_sums(sums, self._loss_and_sums(positions, moved, self.engine(moved))[1])
        means, _ = mean_figures(sums)
        return {f"validation_{name}": means[name] for name in VALIDATION_FIGURES if name in means}

    def _micro_step(self, positions: Sequence[int], batch: PairBatch) -> Sums:
        """Forward and backward pass of a micro batch; the engine updates the weights once a step is complete."""
        loss, sums = self._loss_and_sums(positions, batch, self.engine(batch))
        self.engine.backward(loss)
        self.engine.step()
        return sums

    def _loss_and_sums(
        self, positions: Sequence[int], batch: PairBatch, logps: dict[Role, torch.Tensor]
    ) -> tuple[torch.Tensor, Sums]:
        """The mean loss of a batch with its terms (``train.objective``), and the batch's summed figures."""
        train, device = self.config.train, self.captioner.device
        losses: list[torch.Tensor] = []
        sums = count_completions(batch.lengths, device)
        if train.objective != "nll":
            policy, lengths = PairLogps.of(logps), Lengths.of(batch.lengths, device)
            reference = self.reference.select(positions, device)
            terms = preference_loss(
                policy, reference, lengths, beta=train.beta, label_smoothing=train.label_smoothing, kind=train.loss
            )
            losses.append(terms.loss.mean())
            sums |= sum_preference(terms, policy, lengths, train.beta)
        if train.sft_weight:
            role = self.config.nll_caption
            nll = mean_nll(logps[role], torch.tensor(batch.lengths[role], device=device))
            losses.append(train.sft_weight * nll.mean())
            sums |= sum_nll(nll, train.sft_weight, is_loss=train.objective == "nll")
        return torch.stack(losses).sum(), sums

    def _prefetch(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Positions and batches, each batch loaded in a thread while the one before is used."""
        return prefetch(lambda positions: (positions, self._load_batch(positions)), parts)

    def _load_batch(self, positions: Sequence[int], roles: Sequence[Role] | None = None) -> PairBatch:
        """The pairs at some positions as a batch on the CPU, by default with the captions trained on. Thread-safe."""
        pairs = [self.pairs.table[position] for position in positions]
        features = None if self.features is None else [self.features.load(pair) for pair in pairs]
        return collate(pairs, self.captioner, self.config.source, features, roles or self.roles)

    def _to_device(self, batch: PairBatch) -> PairBatch:
        return batch.to(self.captioner.device, DTYPES[self.config.captioner.dtype])

    def _load_images(self, positions: Sequence[int]) -> list[ImageInputs]:
        """The images of the pairs at some positions. Thread-safe."""
        return image_inputs([self.pairs.table[position] for position in positions], self.captioner, self.config.source)

    def _vision_features(self, images: Tensors) -> Tensors:
        on_device = moved(images, self.captioner.device, DTYPES[self.config.captioner.dtype])
        features: Tensors = self.engine.module.vision_features(on_device)
        return features

    def save_checkpoint(self, history: Sequence[Step], hooks: Hooks) -> None:
        """Write this rank's part of a checkpoint and pass its folder to ``hooks.save``."""
        with tempfile.TemporaryDirectory() as directory:
            self.engine.save_checkpoint(directory, tag="state", client_state={"history": list(history)})
            if self.rank == 0:
                (Path(directory) / WORKERS).write_text(json.dumps(self.world), encoding="utf-8")
            hooks.save(directory, len(history))

    def load_checkpoint(self, directory: str | None) -> list[Step]:
        """Load weights and optimizer state from a checkpoint, if one is given; the steps done before it.

        Raises:
            StageError: the checkpoint was written by another number of workers.
        """
        if directory is None:
            return []
        written_by = json.loads((Path(directory) / WORKERS).read_text(encoding="utf-8"))
        if written_by != self.world:
            raise StageError(
                f"the checkpoint was written by {written_by} workers, but training now has {self.world}",
                f"set train.resources.replicas: {written_by}, or start over with --restart train",
            )
        _, state = self.engine.load_checkpoint(directory, tag="state")
        history: list[Step] = state["history"]
        log.info("resuming from step %d", len(history))
        return history

    def publish(self, folder: Folder) -> None:
        """Gather the weights from all workers and publish the trained model from rank 0; every worker must call."""
        weights = gather_weights(self.engine)
        if self.rank == 0:
            with tempfile.TemporaryDirectory() as directory:
                if self.config.train.lora is not None:
                    settings = self.config.captioner
                    base = load_captioner(self.policy, "cpu", settings.dtype, files=self.config.models)
                    known = hub_model(self.policy, self.config.models)
                    weights = merge_adapters(
                        weights, base.model, self.config.train.lora, Path(directory) / ADAPTER, known
                    )
                publish_captioner(self.captioner.model, self.captioner.processor, directory, weights)
                replace_folder(folder, Path(directory))
        dist.barrier()


def _check_initial_loss(step: Step, config: RunConfig, models: Models) -> None:
    """Check that policy and reference agree before the first update, where they are the same model.

    Raises:
        StageError: the loss differs from ``initial_loss``.
    """
    if config.train.objective == "nll":
        return
    expected = initial_loss(config.train.beta, config.train.loss)
    if models.policy == models.reference and abs(step["loss"] - expected) > initial_loss_tolerance(config):
        raise StageError(
            f"the loss at step 0 is {step['loss']:.5f}, not {expected:.5f}: policy and reference disagree before"
            " training",
            "the stored reference log-probabilities may be those of another model: redo them with --restart train",
        )

"""The training loop of one worker: DPO on selected pairs with a DeepSpeed engine, checkpointed.

It knows torch.distributed, which its caller has initialised, and no Ray: checkpoints and progress leave
through the ``Hooks`` it is given.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from jsfree.config import RunConfig
from jsfree.dpo import batching, reference_logps
from jsfree.dpo.batching import PairBatch, collate, length_of, micro_batches, order_of_epoch, prefetched
from jsfree.dpo.engine import gathered_weights, start_engine
from jsfree.dpo.features import VisionFeatures
from jsfree.dpo.lora import merged
from jsfree.dpo.loss import DPOTerms, Lengths, PairLogps, anchor, dpo, first_loss
from jsfree.dpo.policy import PairModel
from jsfree.dpo.step_log import Step
from jsfree.dpo.validation import Validation
from jsfree.errors import StageError
from jsfree.model_files import hub_model
from jsfree.model_folder import ADAPTER
from jsfree.models import DTYPES, load_captioner
from jsfree.publish import publish_captioner
from jsfree.replacing import replace_folder
from jsfree.schemas import SelectedPair
from jsfree.storage import Folder

log = logging.getLogger(__name__)

FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""By how much the first loss may differ from ln 2, at beta 0.1."""
WORKERS = "workers.json"
"""File of a checkpoint with the number of workers whose shards it holds."""
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
    pairs: Sequence[SelectedPair],
    models: Models,
    folders: Folders,
    hooks: Hooks,
    device: str,
) -> None:
    """Train the policy and publish it.

    Args:
        pairs: the selected pairs, in one order on all workers.

    Raises:
        StageError: too few pairs, or a loss at the first step that is not that of equal models.
    """
    steps = steps_per_epoch(len(pairs), config)
    trained, held_out = split(pairs, config)
    torch.manual_seed(config.seed)
    trainer = _Trainer(config, trained, models, device)
    trainer.prepare(pairs, folders, models)
    history = trainer.restore(hooks.restore)
    total = steps * config.train.epochs
    guard = Validation(config.train, history)
    batches = trainer.batches(len(history), total, steps)
    for step in range(len(history), total):
        figures = trainer.step(batches, step, steps, total)
        if step == 0:
            _check_first_loss(figures, config, models)
        if held_out and guard.due(step, total):
            figures |= trainer.validated(held_out)
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


def split(pairs: Sequence[SelectedPair], config: RunConfig) -> tuple[Sequence[SelectedPair], Sequence[SelectedPair]]:
    """The pairs that are trained on, and those that are held out (``train.validation.pairs``), drawn by the seed."""
    count = config.train.validation.pairs
    if not count:
        return pairs, []
    order = order_of_epoch(len(pairs), config.seed, HELD_OUT)
    out = set(order[:count])
    return [pair for at, pair in enumerate(pairs) if at not in out], [pairs[at] for at in sorted(out)]


class _Trainer:
    """Engine, pairs and reference of one worker."""

    def __init__(self, config: RunConfig, pairs: Sequence[SelectedPair], models: Models, device: str) -> None:
        self.config = config
        self.policy = models.policy
        self.pairs = pairs
        self.lengths = [length_of(pair) for pair in pairs]
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        settings = config.captioner
        self.captioner = load_captioner(
            models.policy, device, settings.dtype, settings.preprocessing, files=config.models
        )
        self.engine = start_engine(self.captioner, config, self.world)
        self.micro: int = self.engine.train_micro_batch_size_per_gpu()
        self.reference: reference_logps.ReferenceLogps = {}
        self.features: VisionFeatures | None = None

    def prepare(self, pairs: Sequence[SelectedPair], folders: Folders, models: Models) -> None:
        """Have images' features and the reference's log-probabilities ready."""
        settings, files = self.config.captioner, self.config.models
        batching.require_context(pairs, self.captioner)
        origin = reference_logps.origin(
            models.reference_fingerprint or models.reference, settings.dtype, settings.preprocessing, pairs
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
            folders.reference, pairs, origin, self._load, lambda batch: forward()(self._placed(batch)), self.micro
        )

    def batches(self, first: int, total: int, steps: int) -> Iterator[PairBatch]:
        """This worker's micro batches of all steps from ``first`` on, one ahead, ``steps`` an epoch."""
        size, seed = self.config.train.pairs_per_step, self.config.seed

        def chosen() -> Iterator[list[SelectedPair]]:
            for step in range(first, total):
                epoch, within = divmod(step, steps)
                order = order_of_epoch(len(self.pairs), seed, epoch)[within * size : (within + 1) * size]
                for indices in micro_batches(self.lengths, order, self.micro, self.rank, self.world):
                    yield [self.pairs[index] for index in indices]

        return prefetched(self._load, chosen())

    def step(self, batches: Iterator[PairBatch], step: int, steps: int, total: int) -> Step:
        """One optimizer step on the next of ``batches``; its figures, averaged over all pairs of the step."""
        started = time.perf_counter()
        rate = learning_rate(step, total, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(len(_FIGURES), dtype=torch.float64)
        for _ in range(self.config.train.pairs_per_step // (self.micro * self.world)):
            sums += self._micro_step(self._placed(next(batches)))
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

    def validated(self, pairs: Sequence[SelectedPair]) -> Step:
        """Figures of pairs that are not trained on, averaged over them."""
        mine = sorted(pairs, key=lambda pair: (-length_of(pair), pair["sample_id"]))[self.rank :: self.world]
        sums = torch.zeros(len(_FIGURES), dtype=torch.float64)
        for batch in prefetched(self._load, [mine[at : at + self.micro] for at in range(0, len(mine), self.micro)]):
            with torch.no_grad():
                placed = self._placed(batch)
                sums += self._terms(placed, self.engine(placed))[1]
        means, _ = self._means(sums)
        return {f"validation_{name}": means[name] for name in ("loss", "accuracy", "margin", "chosen_reward")}

    def _micro_step(self, batch: PairBatch) -> torch.Tensor:
        """Forward and backward of one micro batch, and the optimizer where a step is full; summed figures."""
        policy = self.engine(batch)
        loss, sums = self._terms(batch, policy)
        self.engine.backward(loss)
        self.engine.step()
        return sums

    def _terms(self, batch: PairBatch, policy: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and the batch's summed figures."""
        settings, device = self.config.train, self.captioner.device
        chosen, rejected = torch.tensor(batch.lengths, device=device).chunk(2)
        lengths = Lengths(chosen, rejected)
        terms = dpo(policy, reference_logps.select(self.reference, batch.sample_ids, device), lengths, settings)
        loss = terms.loss.mean()
        if settings.sft_weight:
            loss = loss + settings.sft_weight * anchor(policy, lengths).mean()
        return loss, _summed(terms, policy, lengths, settings.beta)

    def _means(self, sums: torch.Tensor) -> tuple[Step, float]:
        """Figures averaged over the pairs of all workers, and the number of completion tokens."""
        moved = sums.to(self.captioner.device, torch.float32)
        dist.all_reduce(moved)
        figures = dict(zip(_FIGURES, moved.tolist(), strict=True))
        count = figures.pop("pairs")
        means = {name: value / count for name, value in figures.items()}
        tokens = figures["chosen_length"] + figures["rejected_length"]
        return {**means, "margin": means["chosen_reward"] - means["rejected_reward"]}, tokens

    def _load(self, pairs: Sequence[SelectedPair]) -> PairBatch:
        """A batch on the CPU; of any thread."""
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
                f" {self.world}; set train.resources.replicas: {written_by}, or begin anew with --restart train"
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


_FIGURES = (
    "pairs", "chosen_length", "rejected_length", "loss", "chosen_reward", "rejected_reward", "accuracy",
    "chosen_logp", "rejected_logp", "chosen_change",
)  # fmt: skip


def _summed(terms: DPOTerms, policy: PairLogps, lengths: Lengths, beta: float) -> torch.Tensor:
    """The figures of a micro batch, summed over its pairs, in the order of ``_FIGURES``.

    ``chosen_change`` is by how much the chosen caption's log-probability has changed, a token.
    """
    per_pair = (
        lengths.chosen,
        lengths.rejected,
        terms.loss.detach(),
        terms.chosen_reward,
        terms.rejected_reward,
        (terms.chosen_reward > terms.rejected_reward).float(),
        policy.chosen.detach(),
        policy.rejected.detach(),
        terms.chosen_reward / beta / lengths.chosen,
    )
    return torch.tensor([len(lengths.chosen), *(float(values.sum()) for values in per_pair)], dtype=torch.float64)


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process had: on its GPU, or in memory where it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _check_first_loss(step: Step, config: RunConfig, models: Models) -> None:
    """Before any update policy and reference are one model, so the DPO loss must be ln 2 (another for ``ipo``)."""
    expected = first_loss(config.train)
    if models.policy != models.reference:
        return
    if abs(step["loss"] - expected) > first_loss_tolerance(config):
        raise StageError(
            f"the loss at step 0 is {step['loss']:.5f}, not {expected:.5f}: policy and reference disagree before"
            " training; the reference table belongs to another model (--restart train)"
        )

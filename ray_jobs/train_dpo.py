"""Stage 4: DPO by DeepSpeed workers under Ray Train."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jsfree import schemas
from jsfree.config import Resources, RunConfig
from jsfree.dpo.guards import check_training
from jsfree.dpo.loop import Folders, Hooks, Models, Step, steps_per_epoch, train
from jsfree.storage import Folder, Manifest
from ray_jobs.cluster import explained
from ray_jobs.console import Update
from ray_jobs.nccl import COLLECTIVE_SECONDS, worker_environment
from ray_jobs.rounds import Model, Round
from ray_jobs.same_code import carried

if TYPE_CHECKING:
    from ray.train import ScalingConfig

STEPS = "steps.json"
TENSORBOARD = "tensorboard"
LOG_SECONDS = 1.0
ALARM_STEPS = 3
"""Steps over which the chosen captions' change is averaged."""


@dataclass(frozen=True)
class TrainJob:
    """What a training worker is told."""

    config: RunConfig
    models: Models
    selected: str
    reference: str
    features: str
    output: str
    model: str


def train_dpo(current: Round, selected: Manifest) -> Model:
    """Train the round's model."""
    config = current.config
    reference = current.seed if config.train.reference == "seed" else current.start
    settings = config.fingerprint("seed", "captioner.dtype", "captioner.preprocessing", "train")
    fingerprint = current.fingerprint(selected.fingerprint, current.start.fingerprint, settings)
    model = Model(f"m{current.number}", current.stage("model").uri, fingerprint)
    job = TrainJob(
        config,
        Models(current.start.ref, reference.ref, reference.fingerprint),
        current.stage("selected").uri,
        current.stage("reference").uri,
        current.stage("features").uri,
        current.stage("train").uri,
        model.ref,
    )
    current.once("train", fingerprint, lambda: _run(current, job, selected.rows_out, fingerprint))
    return model


def worker_loop(job: TrainJob) -> None:
    """The training function of a Ray Train worker."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    pairs = Folder(job.selected).read_shards(schemas.SELECTED).to_pylist()
    checkpoint = ray_train.get_checkpoint()
    device = str(get_device())  # Ray Train gives each worker its own GPU
    if device == "cpu":
        torch.set_num_threads(max(1, int(job.config.train.resources.cpus)))

    def save(directory: str, step: int) -> None:
        named = ray_train.Checkpoint.from_directory(directory)
        ray_train.report({"step": step}, checkpoint=named, checkpoint_dir_name=f"step-{step:06d}")

    def go(restore: str | None) -> None:
        folders = Folders(Folder(job.reference), Folder(job.features), Folder(job.model))
        with step_log(Folder(job.output)) as progress:
            train(job.config, pairs, job.models, folders, Hooks(progress, save, restore), device)

    if checkpoint is None:
        go(None)
    else:
        with checkpoint.as_directory() as directory:
            go(directory)


@contextmanager
def step_log(folder: Folder) -> Iterator[Callable[[Sequence[Step], int], None]]:
    """Publish steps: ``steps.json`` at most once a second and after the last one, and each to TensorBoard."""
    from tensorboardX import SummaryWriter

    published = [0.0]
    writers: list[Any] = []
    with tempfile.TemporaryDirectory() as away:
        events = folder / TENSORBOARD
        directory = events.path if events.is_local else away

        def publish(history: Sequence[Step], total: int) -> None:
            step = len(history) - 1
            if not writers:  # steps after the checkpoint that a resumed training goes on from are no longer true
                writers.append(SummaryWriter(directory, purge_step=step))
            for name, value in history[-1].items():
                if name not in ("step", "epoch"):
                    writers[0].add_scalar(f"train/{name}".replace("train/validation_", "validation/"), value, step)
            if len(history) == total or time.monotonic() - published[0] >= LOG_SECONDS:
                published[0] = time.monotonic()
                folder.write_json(STEPS, list(history))

        try:
            yield publish
        finally:
            for writer in writers:
                writer.close()
                if not events.is_local:
                    events.upload(directory)


def _run(current: Round, job: TrainJob, pairs: int, fingerprint: str) -> Manifest:
    config = current.config
    trained = pairs - config.train.validation.pairs
    total = steps_per_epoch(trained, config) * config.train.epochs
    current.claim("train", config.train.resources, config.train.resources.replicas)
    alarm = Alarm(config.train.chosen_alarm, current.reporter.say)
    with (
        current.reporter.progress("train", total) as update,
        _watched(Folder(job.output), update, alarm),
        explained("train"),
    ):
        _check(job, total)
        _beside(lambda: _fit(job, fingerprint))
    steps: list[Step] = Folder(job.output).read_json(STEPS)
    alarm(steps)
    if len(steps) < total:
        current.reporter.say(f"  train stopped early, after {len(steps)} of {total} steps (train.validation.patience)")
    seconds = sum(step["seconds"] for step in steps) * config.train.resources.replicas
    tokens = int(sum(step["tokens"] for step in steps))
    return Manifest("", pairs, len(steps) * config.train.pairs_per_step, 0, 0.0, seconds, tokens)


def _check(job: TrainJob, steps: int) -> None:
    """Find out what would stop the workers, where GPUs train on a node that has them.

    Raises:
        JsfreeError: as ``check_training``.
    """
    resources = job.config.train.resources
    arguments = (job.config, job.models.policy, steps, job.output)
    if not resources.gpus:
        check_training(*arguments)
        return
    import ray

    # max_calls: the process ends, and with it the memory that CUDA holds on the GPU.
    probe = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(check_training)
    ray.get(probe.options(accelerator_type=resources.accelerator_type).remote(*arguments))


def _fit(job: TrainJob, fingerprint: str) -> None:
    """Run the workers; a run of the same fingerprint goes on from its last checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = job.config.train.resources
    TorchTrainer(
        carried(partial(worker_loop, job)),
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=scaling(resources),
        run_config=RunConfig(
            name=f"checkpoints-{fingerprint}",
            storage_path=job.output,
            failure_config=FailureConfig(max_failures=job.config.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.config.train.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": worker_environment(resources.gpus, os.environ)},
        ),
    ).fit()


def scaling(resources: Resources) -> ScalingConfig:
    """The training workers: a fixed number, on as few nodes as can be."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=resources.replicas,
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
        placement_strategy="PACK",
        accelerator_type=resources.accelerator_type,
    )


def _beside(work: Callable[[], object]) -> None:
    """Do something in a thread and wait for it: in the main thread Ray Train would take Ctrl-C for itself."""
    done: Future[None] = Future()

    def do() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=do, name="fit", daemon=True).start()
    done.result()


def described(steps: Sequence[Step]) -> str:
    """The last step in a few words."""
    last = steps[-1]
    words = [f"loss {last['loss']:.3f}", f"accuracy {last['accuracy']:.2f}", f"margin {last['margin']:+.2f}"]
    looked = [step["validation_loss"] for step in steps if "validation_loss" in step]
    if looked:
        words.append(f"held out {looked[-1]:.3f}")
    return "  ".join([*words, f"{last['tokens_per_second']:,.0f} tokens/s"])


class Alarm:
    """Warns, once, when the chosen captions themselves become unlikely, which the DPO loss does not see."""

    def __init__(self, threshold: float | None, say: Callable[[str], None]) -> None:
        self.threshold = threshold
        self._say = say

    def __call__(self, steps: Sequence[Step]) -> None:
        """Look at all steps so far."""
        if self.threshold is None:
            return
        for at in range(ALARM_STEPS, len(steps) + 1):
            lost = -sum(step["chosen_change"] for step in steps[at - ALARM_STEPS : at]) / ALARM_STEPS
            if lost > self.threshold:
                self._say(
                    f"  warning: at step {at} the chosen captions have lost {lost:.2f} of log-probability a token"
                    f" (train.chosen_alarm: {self.threshold:g}); raise train.sft_weight or lower train.learning_rate"
                )
                self.threshold = None
                return


@contextmanager
def _watched(folder: Folder, update: Update, alarm: Alarm) -> Iterator[None]:
    """Follow the step log from a thread while the workers train."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(LOG_SECONDS):
            if folder.exists(STEPS):
                steps: list[Step] = folder.read_json(STEPS)
                update(len(steps), described(steps))
                alarm(steps)

    update(0, "starting workers")
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

"""Stage 4: DPO by DeepSpeed workers under Ray Train."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jsfree import schemas
from jsfree.config import Resources, RunConfig
from jsfree.dpo.loop import Folders, Hooks, Models, steps_per_epoch, train
from jsfree.dpo.pairs import PairTable
from jsfree.dpo.reference_logps import origin
from jsfree.dpo.step_log import STEPS, ChosenLogpWarning, Step, step_log, summary_line
from jsfree.run.folder import Folder
from jsfree.run.reuse import take_reference
from jsfree.run.run import Manifest
from jsfree.sizing.guards import check_training
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.cluster.nccl import COLLECTIVE_SECONDS, worker_environment
from ray_jobs.cluster.same_code import checked_function
from ray_jobs.commands.console import Update
from ray_jobs.rounds import Model, Round

if TYPE_CHECKING:
    from ray.train import ScalingConfig

POLL_SECONDS = 1.0
"""Time between two reads of the step log."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Inputs and outputs of a training worker; paths are folders or URIs."""

    config: RunConfig
    models: Models
    selected: str
    reference: str
    features: str
    output: str
    model: str


def train_dpo(current: Round, selected: Manifest) -> Model:
    """Train the round's model on the selected pairs."""
    config = current.config
    reference = current.seed if config.train.reference == "seed" else current.start
    settings = config.fingerprint("seed", "captioner.dtype", "captioner.preprocessing", "train")
    fingerprint = current.fingerprint(selected.fingerprint, current.start.fingerprint, settings)
    model = Model(f"m{current.number}", current.stage("model").uri, fingerprint)
    job = TrainJob(
        config=config,
        models=Models(current.start.ref, reference.ref, reference.fingerprint),
        selected=current.stage("selected").uri,
        reference=current.stage("reference").uri,
        features=current.stage("features").uri,
        output=current.stage("train").uri,
        model=model.ref,
    )

    def work() -> Manifest:
        expected = origin(reference.fingerprint, config.captioner.dtype, config.captioner.preprocessing)
        take_reference(current.run, current.number, expected)
        return _run(current, job, selected.rows_out, fingerprint)

    current.complete("train", fingerprint, work)
    return model


def worker_loop(job: TrainJob) -> None:
    """The training function of a Ray Train worker."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    checkpoint = ray_train.get_checkpoint()
    device = str(get_device())  # Ray Train gives each worker its own GPU
    if device == "cpu":
        torch.set_num_threads(max(1, int(job.config.train.resources.cpus)))

    def save(directory: str, step: int) -> None:
        named = ray_train.Checkpoint.from_directory(directory)
        ray_train.report({"step": step}, checkpoint=named, checkpoint_dir_name=f"step-{step:06d}")

    def train_from(restore: str | None) -> None:
        folders = Folders(Folder(job.reference), Folder(job.features), Folder(job.model))
        with step_log(Folder(job.output)) as progress:
            pairs = PairTable(Folder(job.selected), schemas.selected_schema(job.config.select.strategy))
            train(job.config, pairs, job.models, folders, Hooks(progress, save, restore), device)

    if checkpoint is None:
        train_from(None)
    else:
        with checkpoint.as_directory() as directory:
            train_from(directory)


def _run(current: Round, job: TrainJob, pairs: int, fingerprint: str) -> Manifest:
    config = current.config
    total = steps_per_epoch(pairs, config) * config.train.epochs
    current.reserve("train", config.train.resources, config.train.resources.replicas)
    alarm = ChosenLogpWarning(config.train.chosen_alarm, current.reporter.say)
    with (
        current.reporter.progress("train", total) as update,
        _steps_shown(Folder(job.output), update, alarm),
        unwrap_errors("train"),
    ):
        _check(job, pairs, total)
        _run_in_thread(lambda: _fit(job, fingerprint))
    steps: list[Step] = Folder(job.output).read_json(STEPS)
    alarm(steps)
    if len(steps) < total:
        current.reporter.say(f"  train stopped early, after {len(steps)} of {total} steps (train.validation.patience)")
    seconds = sum(step["seconds"] for step in steps) * config.train.resources.replicas
    tokens = int(sum(step["tokens"] for step in steps))
    return Manifest(
        rows_in=pairs, rows_out=len(steps) * config.train.pairs_per_step, device_seconds=seconds, tokens=tokens
    )


def _check(job: TrainJob, pairs: int, steps: int) -> None:
    """Run ``check_training`` before the workers start, on a node with GPUs if they train on GPUs.

    Raises:
        JsfreeError: as ``check_training``.
    """
    resources = job.config.train.resources
    arguments = (job.config, job.models.policy, pairs, steps, job.output)
    if not resources.gpus:
        check_training(*arguments)
        return
    import ray

    # max_calls=1 ends the process, which frees the GPU memory that CUDA holds.
    probe = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(check_training)
    ray.get(probe.options(accelerator_type=resources.accelerator_type).remote(*arguments))


def _fit(job: TrainJob, fingerprint: str) -> None:
    """Run the workers; training with the same fingerprint resumes from its last checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = job.config.train.resources
    TorchTrainer(
        checked_function(partial(worker_loop, job)),
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=scaling(resources),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy reads the class of the first version of Ray Train
            name=f"checkpoints-{fingerprint}",
            storage_path=job.output,
            failure_config=FailureConfig(max_failures=job.config.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.config.train.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": worker_environment(resources.gpus, os.environ)},
        ),
    ).fit()


def scaling(resources: Resources) -> ScalingConfig:
    """A fixed number of training workers, on as few nodes as possible."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=resources.replicas,
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
        placement_strategy="PACK",
        accelerator_type=resources.accelerator_type,
    )


def _run_in_thread(work: Callable[[], object]) -> None:
    """Run ``work`` in a thread and wait for it, because in the main thread Ray Train would handle Ctrl-C itself."""
    done: Future[None] = Future()

    def do() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by done.result()
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=do, name="fit", daemon=True).start()
    done.result()


@contextmanager
def _steps_shown(folder: Folder, update: Update, alarm: ChosenLogpWarning) -> Iterator[None]:
    """Show the steps of the step log until the block ends."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            if folder.exists(STEPS):
                steps: list[Step] = folder.read_json(STEPS)
                update(len(steps), summary_line(steps))
                alarm(steps)

    update(0, "starting workers")
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

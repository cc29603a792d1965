"""Runs the stages of ``jsfree.run.stages`` in order: all rounds of a run, or one stage of one round.

The next round starts from the round's model. The report is written after every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.text import Text

from jsfree.config import RunConfig
from jsfree.errors import ConfigError, RunError, StageError
from jsfree.evaluation.rounds_stop import first_worse, last_round, verdicts
from jsfree.models.loading import look_up_models
from jsfree.run.folder import Folder
from jsfree.run.invalidation import discard
from jsfree.run.lease import Lease
from jsfree.run.record import read_record, recorded, stage_states, update_record
from jsfree.run.run import CONFIG, Manifest, Run, stored_config
from jsfree.run.stages import LAST_STAGE, MODEL_STAGE, PARTS, STAGES, restart_order
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.rounds import Model, Round
from ray_jobs.signals import exit_on_sigterm
from ray_jobs.stages.evaluate import evaluate_model, hash_evaluation_images
from ray_jobs.stages.generate import generate_pairs, list_samples
from ray_jobs.stages.import_pairs import import_pairs, list_records
from ray_jobs.stages.score import score_pairs
from ray_jobs.stages.select import select_pairs
from ray_jobs.stages.train import train_dpo


def generate(current: Round, _: None) -> Manifest:
    """Write the round's samples and pairs, generated or imported, without images of the evaluation set.

    Raises:
        StageError: all images of the round are in the evaluation set.
    """
    imported = current.config.imported
    samples = list_samples(current) if imported is None else list_records(current, imported)
    hashes = hash_evaluation_images(current)
    if imported is None:
        pairs = generate_pairs(current, samples, hashes)
    else:
        pairs = import_pairs(current, imported, samples, hashes)
    if not pairs.rows_out and "excluded" in pairs.facts:
        raise StageError(
            f"{current.stage('pairs').uri}: no pair is left to train on, because {pairs.facts['excluded']} images are"
            " also in the evaluation set",
            "set 'source' or 'evaluate.source' to other images, and use --restart samples",
        )
    return pairs


WORK: dict[str, Callable[[Round, Any], Any]] = {
    "generate": generate,
    "score": score_pairs,
    "select": select_pairs,
    "train": train_dpo,
    "evaluate": evaluate_model,
}
"""What each stage of ``STAGES`` does; its second argument is what the stage before it returned."""


def run(config: RunConfig, reporter: Reporter, restart: str | None = None) -> str:
    """Run all rounds, or resume an interrupted run; return the path of the report.

    The rule ``rounds_stop`` may end it after fewer rounds. It decides by stored results, so a resumed run ends at the
    same round.

    Args:
        restart: stage, or part of one, to redo from the first round on.

    Raises:
        JsfreeError: a setting, source, model or run folder is wrong, or a stage failed. Finished work is kept.
    """
    started = time.monotonic()
    with _session(config, reporter) as first:
        if restart is not None:
            restarted_part(restart)  # a wrong name must not change the record
            update_record(first.run, rounds_done=0, rounds_stop=None)
            remove_from(first.run, restart)
            update_record(first.run, stages=stage_states(first.run))
        model = first.seed
        for number in range(1, config.rounds + 1):
            model = improve(replace(first, number=number, start=model))
            _count_round(first.run, number)
            page = _write_report(first.run)
            if _apply_stop_rule(first, number):
                break
        first.run.store_config()
    reporter.say(f"Done in {time.monotonic() - started:.0f} s.")
    return page


def run_stage(config: RunConfig, reporter: Reporter, name: str, number: int | None = None) -> int:
    """Run or resume one stage of one round; return the round's number.

    Args:
        number: the round; by default the first in which the stage is not done, or the last one.

    Raises:
        JsfreeError: as ``run``, or a stage that this one depends on is not done.
    """
    number = _select_round(Run(config), name, number)
    _require_dependencies(Run(config), name, number)
    with _session(config, reporter) as first:
        model = first.seed
        for before in range(1, number):
            model = improve(replace(first, number=before, start=model), MODEL_STAGE)
        improve(replace(first, number=number, start=model), name)
        if name == LAST_STAGE:
            _count_round(first.run, number)
            _write_report(first.run)
            _apply_stop_rule(first, number)
    return number


def improve(current: Round, last: str = LAST_STAGE) -> Any:
    """Run a round of self-improvement (paper, Algorithm 1) up to the stage ``last``; return that stage's result."""
    current.reporter.say(
        Text.assemble(
            (f"Round {current.number}", "bold"),
            f" of {current.config.rounds}: {current.start.name} -> m{current.number}",
        )
    )
    result = None
    for name, work in WORK.items():
        result = work(current, result)
        if name == last:
            break
    return result


@contextmanager
def _session(config: RunConfig, reporter: Reporter) -> Iterator[Round]:
    """Hold the run's lease and yield its first round; Ray starts when a stage needs it.

    Raises:
        LeaseError: another driver holds the lease.
    """
    config = with_models(config)
    current_run = Run.open(config)
    seed = seed_model(config)
    with (
        exit_on_sigterm(),
        Lease(current_run.folder) as lease,
        recorded(current_run, lease),
        Cluster(config) as cluster,
    ):
        yield Round(current_run, 1, seed, seed, cluster, reporter)


def seed_model(config: RunConfig) -> Model:
    """m0, the captioner that a run starts from."""
    return Model("m0", config.captioner.versioned_ref, config.fingerprint("captioner.ref", "captioner.revision"))


def with_models(config: RunConfig) -> RunConfig:
    """Check that the models are available, and add the commits of models from the hub to the configuration.

    All nodes use these commits, and a resumed run uses the commits it started with. The check happens before any
    worker starts.

    Raises:
        ModelError: a model is missing, gated or incomplete.
    """
    folder, models = Folder(config.run), config.models
    if folder.exists(CONFIG):
        stored = stored_config(folder).models.commits
        models = models.model_copy(update={"commits": {**stored, **models.commits}})
    models = look_up_models(config.captioner.versioned_ref, config.clip.scorers, models)
    return config.model_copy(update={"models": models})


def _select_round(of: Run, name: str, number: int | None) -> int:
    """The round that a stage's command works on.

    Raises:
        ConfigError: the run has no round ``number``.
    """
    rounds = range(1, of.config.rounds + 1)
    if number is None:
        used = range(1, last_round(of) + 1)
        return next((each for each in used if not of.round(each).exists(STAGES[name].mark)), used[-1])
    if number not in rounds:
        raise ConfigError(f"--round {number}: the run has rounds 1 to {rounds[-1]}", f"for more, --set rounds={number}")
    return number


def _require_dependencies(of: Run, name: str, number: int) -> None:
    """Check that all stages that a stage of round ``number`` depends on are done.

    Raises:
        RunError: one of them is not done.
    """
    order = list(STAGES)
    to_model = order[: order.index(MODEL_STAGE) + 1]
    required = [(before, each) for before in range(1, number) for each in to_model]
    required += [(number, each) for each in order[: order.index(name)]]
    for before, each in required:
        if not of.round(before).exists(STAGES[each].mark):
            raise RunError(
                f"{of.folder.uri}: {name!r} of round {number} needs {each!r} of round {before}, which is not done",
                f"first do `jsfree {each} --round {before}` with the same --config, --run and --set",
            )


def restarted_part(stage: str) -> str:
    """The part that ``--restart stage`` begins with; ``stage`` is a command, a part or a folder of one.

    Raises:
        ConfigError: there is no such stage.
    """
    parts = restart_order()
    first = next((part.name for part in PARTS.values() if part.stage == stage), stage)
    first = next((part for part, written in parts.items() if first in (part, *written)), first)
    if first not in parts:
        raise ConfigError(f"--restart {stage}: no such stage", f"choose from {', '.join({**STAGES, **parts})}")
    return first


def remove_from(current_run: Run, stage: str) -> None:
    """Remove a stage, or a part of one, of the first round and everything made after it, the latest first.

    Raises:
        ConfigError: there is no such stage.
        StorageError: something cannot be removed; the same ``--restart`` continues the removal.
    """
    parts, first = restart_order(), restarted_part(stage)
    for number in reversed(current_run.rounds()):
        for part in reversed(parts):
            discard(current_run.round(number), parts[part])
            if number == 1 and part == first:
                break
        else:
            current_run.round(number).remove()


def _count_round(current_run: Run, number: int) -> None:
    update_record(current_run, rounds_done=max(number, read_record(current_run).get("rounds_done", 0)))


def _apply_stop_rule(current: Round, number: int) -> bool:
    """Judge round ``number`` by the rule ``rounds_stop``: print the verdict, record a stop, return whether to stop."""
    run, rule = current.run, current.config.rounds_stop
    known = [verdict for verdict in verdicts(run, rule) if verdict.round <= number] if rule else []
    stop = first_worse(known)
    update_record(run, rounds_stop=stop and stop.as_json())
    if stop is not None:
        current.reporter.say(
            f"Stopped after round {stop.round} of {run.config.rounds} (rounds_stop): {stop}. The result of the run is"
            f" m{stop.last_good}; with --set rounds_stop=null it continues from m{stop.round}."
        )
    elif known and known[-1].round == number:
        current.reporter.say(f"  {known[-1]}")
    return stop is not None


def _write_report(current_run: Run) -> str:
    from jsfree.report.page import build_report

    return build_report(current_run)

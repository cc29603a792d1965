"""The order of the stages, written once: samples -> pairs -> scored -> selected -> model -> captions -> metrics.

The next round starts from the model; the report is written after every round. ``run`` does all of it,
``run_stage`` one stage of one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from jsfree.config import RunConfig
from jsfree.errors import ConfigError, RunError, StageError
from jsfree.models.loading import look_up_models
from jsfree.run.folder import Folder
from jsfree.run.invalidation import discard
from jsfree.run.lease import Lease
from jsfree.run.record import read_record, recorded, stage_states, update_record
from jsfree.run.run import Manifest, Run, stored_config
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


@dataclass(frozen=True)
class Stage:
    """A part of every round that has a command of its own."""

    work: Callable[[Round, Any], Any]
    """Does what is not done yet, given what the stage before it made."""
    mark: str
    """The file that appears in the round's folder when the stage is done."""
    parts: dict[str, tuple[str, ...]]
    """What ``--restart`` can name, in order, and what each part writes."""


def generate(current: Round, _: None) -> Manifest:
    """The round's samples, and two captions of each, generated or imported; none of an evaluation image.

    Raises:
        StageError: all of the round's images are in the evaluation set.
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
            "let 'source' or 'evaluate.source' name other images, and --restart samples",
        )
    return pairs


STAGES = {
    "generate": Stage(generate, "pairs/_manifest.json", {"samples": ("samples",), "pairs": ("pairs",)}),
    "score": Stage(score_pairs, "scored/_manifest.json", {"scored": ("scored",)}),
    "select": Stage(select_pairs, "selected/_manifest.json", {"selected": ("selected",)}),
    "train": Stage(train_dpo, "train/_manifest.json", {"train": ("reference", "features", "train", "model")}),
    "evaluate": Stage(
        evaluate_model,
        "label_free.json",
        {
            "evaluation": ("evaluation", "evaluation_hashes"),
            "captions": ("captions",),
            "captions_scored": ("captions_scored", "metrics.json", "label_free.json"),
        },
    ),
}
LAST = "evaluate"


def run(config: RunConfig, reporter: Reporter, restart: str | None = None) -> str:
    """Run, or take up, all rounds of a run; the path of its report.

    Raises:
        JsfreeError: a setting, source, model or run that does not fit, or a stage that failed; what was
            finished stays.
    """
    started = time.monotonic()
    with _session(config, reporter) as first:
        if restart is not None:
            update_record(first.run, rounds_done=0)
            remove_from(first.run, restart)
            update_record(first.run, stages=stage_states(first.run))
        model = first.seed
        for number in range(1, config.rounds + 1):
            model = improve(replace(first, number=number, start=model))
            _count_round(first.run, number)
            page = _report(first.run)
    reporter.say(f"Done in {time.monotonic() - started:.0f} s.")
    return page


def run_stage(config: RunConfig, reporter: Reporter, name: str, number: int | None = None) -> int:
    """Do, or take up, one stage of one round; the round's number.

    Without ``number`` it is the first round in which the stage is not done, or the last one.

    Raises:
        JsfreeError: as ``run``, or a stage that this one builds on is not done.
    """
    number = _chosen_round(Run(config), name, number)
    _require_before(Run(config), name, number)
    with _session(config, reporter) as first:
        model = first.seed
        for before in range(1, number):
            model = improve(replace(first, number=before, start=model), "train")
        improve(replace(first, number=number, start=model), name)
        if name == LAST:
            _count_round(first.run, number)
            _report(first.run)
    return number


def improve(current: Round, last: str = LAST) -> Any:
    """One round of self-improvement (paper, Algorithm 1), or its stages up to ``last``; what that one made."""
    title = (f"Round {current.number}", "bold")
    told = f" of {current.config.rounds}: {current.start.name} -> m{current.number}"
    current.reporter.say(Text.assemble(title, told))
    made = None
    for name, stage in STAGES.items():
        made = stage.work(current, made)
        if name == last:
            break
    return made


@contextmanager
def _session(config: RunConfig, reporter: Reporter) -> Iterator[Round]:
    """The first round of a run, ready for work: its models are there, its folder is ours, Ray starts when needed.

    Raises:
        LeaseError: another driver works on the run.
    """
    config = with_models(config)
    current_run = Run.open(config)
    seed = Model("m0", config.captioner.versioned_ref, config.fingerprint("captioner.ref", "captioner.revision"))
    with (
        exit_on_sigterm(),
        Lease(current_run.folder) as lease,
        recorded(current_run, lease),
        Cluster(config) as cluster,
    ):
        yield Round(current_run, 1, seed, seed, cluster, reporter)


def with_models(config: RunConfig) -> RunConfig:
    """The configuration, its models found to be there and those of the hub kept to one commit for all nodes.

    A run that goes on keeps the commits it began with. A model that is not there must not be found out by a worker.

    Raises:
        ModelError: a model is missing, gated or not whole.
    """
    folder, models = Folder(config.run), config.models
    if folder.exists("config.yaml"):
        kept = stored_config(folder).models.commits
        models = models.model_copy(update={"commits": {**kept, **models.commits}})
    captioner, clip = config.captioner, config.clip
    models = look_up_models(captioner.versioned_ref, clip.versioned_ref, clip.pretrained, models)
    return config.model_copy(update={"models": models})


def _chosen_round(of: Run, name: str, number: int | None) -> int:
    """The round that a stage's command means.

    Raises:
        ConfigError: there is no such round.
    """
    rounds = range(1, of.config.rounds + 1)
    if number is None:
        return next((each for each in rounds if not of.round(each).exists(STAGES[name].mark)), rounds[-1])
    if number not in rounds:
        raise ConfigError(f"--round {number}: the run has rounds 1 to {rounds[-1]}", f"for more, --set rounds={number}")
    return number


def _require_before(of: Run, name: str, number: int) -> None:
    """See that all that a stage of a round builds on is done, without touching the run.

    Raises:
        RunError: a stage must be done first.
    """
    order = list(STAGES)
    to_model = order[: order.index("train") + 1]
    needed = [(before, each) for before in range(1, number) for each in to_model]
    needed += [(number, each) for each in order[: order.index(name)]]
    for before, each in needed:
        if not of.round(before).exists(STAGES[each].mark):
            raise RunError(
                f"{of.folder.uri}: {name!r} of round {number} needs {each!r} of round {before}, which is not done;"
                f" first do `jsfree {each} --round {before}` with the same --config, --run and --set"
            )


def remove_from(current_run: Run, stage: str) -> None:
    """Remove a stage, or a part of one, of the first round, and everything made after it, the latest first.

    Raises:
        ConfigError: there is no such stage.
        StorageError: something cannot be removed; with the same ``--restart`` the removal goes on.
    """
    parts = {name: written for each in STAGES.values() for name, written in each.parts.items()}
    if stage in STAGES:
        stage = next(iter(STAGES[stage].parts))
    stage = next((part for part, written in parts.items() if stage in written), stage)
    if stage not in parts:
        raise ConfigError(f"--restart {stage}: no such stage", f"choose from {', '.join({**STAGES, **parts})}")
    for number in reversed(current_run.rounds()):
        for part in reversed(parts):
            discard(current_run.round(number), parts[part])
            if number == 1 and part == stage:
                break
        else:
            current_run.round(number).remove()


def _count_round(current_run: Run, number: int) -> None:
    update_record(current_run, rounds_done=max(number, read_record(current_run).get("rounds_done", 0)))


def _report(current_run: Run) -> str:
    from jsfree.report.page import build_report

    return build_report(current_run)

"""The order of the stages, written once: samples -> pairs -> scored -> selected -> model -> captions -> metrics.

The next round starts from the model; the report is written after every round.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jsfree
from jsfree.config import RunConfig
from jsfree.errors import ConfigError
from jsfree.models import resolve
from jsfree.storage import Run
from ray_jobs.cluster import Cluster
from ray_jobs.console import Reporter
from ray_jobs.evaluate_model import evaluate_model
from ray_jobs.generate_pairs import generate_pairs, list_samples
from ray_jobs.rounds import Model, Round
from ray_jobs.score_pairs import score_pairs
from ray_jobs.select_pairs import select_pairs
from ray_jobs.train_dpo import train_dpo

# What --restart removes: the named stage's folders and all behind them.
STAGES = {
    "samples": ("samples",),
    "pairs": ("pairs",),
    "scored": ("scored",),
    "selected": ("selected",),
    "train": ("reference", "train", "model"),
    "evaluation": ("evaluation",),
    "captions": ("captions",),
    "captions_scored": ("captions_scored",),
}
VERSIONS = ("ray", "torch", "transformers", "open_clip_torch", "deepspeed", "pyarrow")


def run(config: RunConfig, reporter: Reporter, restart: str | None = None) -> str:
    """Run, or take up, all rounds of a run; the path of its report.

    Raises:
        JsfreeError: a setting, source, model or run that does not fit, or a stage that failed; what was
            finished stays.
    """
    for ref in (config.captioner.ref, config.clip.ref):
        resolve(ref)  # a model that is not there must not be found out by a worker
    current_run = Run.open(config)
    if restart is not None:
        remove_from(current_run, restart)
    started = time.monotonic()
    _describe(current_run, rounds_done=0)
    seed = Model("m0", config.captioner.ref, config.fingerprint("captioner.ref"))
    model = seed
    with Cluster(config) as cluster:
        for number in range(1, config.rounds + 1):
            reporter.say(f"[bold]Round {number}[/bold] of {config.rounds}: {model.name} -> m{number}")
            model = improve(Round(current_run, number, seed, model, cluster, reporter))
            _describe(current_run, rounds_done=number)
            page = _report(current_run)
    reporter.say(f"Done in {time.monotonic() - started:.0f} s.")
    return page


def improve(current: Round) -> Model:
    """One round of self-improvement (paper, Algorithm 1)."""
    samples = list_samples(current)
    pairs = generate_pairs(current, samples)
    scored = score_pairs(current, pairs)
    selected = select_pairs(current, scored)
    _, model = train_dpo(current, selected)
    evaluate_model(current, model)
    return model


def remove_from(current_run: Run, stage: str) -> None:
    """Remove a stage of the first round that has it, and everything made after it.

    Raises:
        ConfigError: there is no such stage.
    """
    if stage not in STAGES:
        raise ConfigError(f"--restart {stage}: no such stage; choose from {', '.join(STAGES)}")
    behind = list(STAGES)[list(STAGES).index(stage) :]
    folders = [folder for name in behind for folder in STAGES[name]]
    for name in [*folders, *(f"errors/{folder}" for folder in folders)]:
        (current_run.round(1) / name).remove()
    for entry in current_run.folder.names():
        if entry.startswith("round-") and entry != "round-1":
            (current_run.folder / entry).remove()


def _report(current_run: Run) -> str:
    from jsfree.report.page import build_report

    return build_report(current_run)


def _describe(current_run: Run, rounds_done: int) -> None:
    """Keep ``run.json`` true: versions, hardware, command."""
    known: dict[str, Any] = current_run.folder.read_json("run.json") if current_run.folder.exists("run.json") else {}
    described = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **known,
        "jsfree": jsfree.__version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "hardware": hardware(),
        "command": command(sys.argv),
        "fingerprint": current_run.config.fingerprint(*(set(RunConfig.model_fields) - {"run", "ray"})),
        "rounds_done": max(rounds_done, known.get("rounds_done", 0)),
    }
    current_run.folder.write_json("run.json", described)


def hardware() -> str:
    """The driver's machine, in words."""
    import os

    import torch

    gpus = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}){gpus}"


def command(argv: Sequence[str]) -> str:
    """The command line as a person would type it."""
    import shlex
    from pathlib import Path

    return shlex.join(["jsfree" if Path(argv[0]).stem in ("jsfree", "cli") else Path(argv[0]).name, *argv[1:]])

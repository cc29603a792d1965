"""Runs the cells of an ablation on one cluster and writes ``ablation.json`` and ``index.html``."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from jsfree.ablation import page, results
from jsfree.ablation.definition import Ablation, load
from jsfree.ablation.results import CellRun, Summary, run_path
from jsfree.config import Generate, RunConfig, Score, Train
from jsfree.errors import RunError, StageError
from jsfree.gpus import nvidia_driver
from jsfree.models.references import WEIGHTS
from jsfree.run.code_version import files_of
from jsfree.run.folder import Folder
from jsfree.run.lease import Lease
from jsfree.run.locations import require_outside_runs
from jsfree.run.run import CONFIG
from jsfree.uris import PACKAGED
from ray_jobs.ablation.display import ConsoleDisplay, print_plan, print_results
from ray_jobs.ablation.drivers import Drivers
from ray_jobs.ablation.schedule import Task, tasks_of
from ray_jobs.cluster.capacity import Node, alive_nodes, replicas_on
from ray_jobs.cluster.jobs import prepare_for_job
from ray_jobs.cluster.session import Cluster

UNLIMITED = 10**6
DEFAULT_FOLDER = "runs/ablations"
MODELS = "models.json"
"""Hashes of the files of the packaged models that the runs start from."""


def run_ablation(
    file: Path,
    out: str | None,
    console: Console,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    parallel: int | None = None,
    settings: Sequence[str] = (),
    check: bool = True,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Run the cells of the ablation in ``file`` that are not done, and write their summary and its page.

    Args:
        out: folder or URI; by default ``runs/ablations/<name>``.
        only: names of cells or patterns; by default all.
        seeds: by default those of the file.
        parallel: runs at a time; by default as many as the cluster has resources for.
        settings: ``key=value`` for all cells.
        check: run preflight first.
        dry_run: only print the runs and what they share.
        as_json: print ``ablation.json`` on stdout.

    Raises:
        ConfigError: the file, or the settings of a cell, are wrong.
        RunError: a run in ``out`` was made with other settings.
        StageError: a run failed; the others are finished.
    """
    whole = load(file, settings)
    ablation = whole.restricted(only, seeds)
    folder = _folder(ablation, out)
    tasks = tasks_of(ablation, folder)
    if dry_run:
        print_plan(console, tasks)
        return
    for task in tasks:
        task.check_inputs()
    unfinished = [task for task in tasks if not task.is_done()]
    if check:
        _preflight(unfinished, console)

    def write(errors: Mapping[int, str]) -> Summary:
        summary = results.summarise(whole, folder, _cell_runs(whole, folder, tasks, errors))
        folder.write_json(results.FILE, summary)
        page.write_page(folder, summary)
        return summary

    with Lease(folder):
        require_same_models(folder, [task.config for task in tasks])
        errors = _run(ablation, tasks, folder, parallel, console, write) if unfinished else {}
        summary = write(errors)
    print_results(console, page.mode_tables(summary))
    console.print(f"Report: {folder.uri}/{page.PAGE}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    if errors:
        raise _failure(tasks, errors)


def _failure(tasks: Sequence[Task], errors: Mapping[int, str]) -> StageError:
    names = "; ".join(tasks[position].name for position in sorted(errors))
    return StageError(
        f"{len(errors)} of {len(tasks)} runs failed: {names}",
        "see their errors above; the same command runs them again",
    )


def _folder(ablation: Ablation, out: str | None) -> Folder:
    """The folder of an ablation.

    Raises:
        ConfigError: it is inside a run.
    """
    uri = out or f"{DEFAULT_FOLDER}/{ablation.name}"
    prepare_for_job(ablation.config(ablation.cells[0], ablation.seeds[0], uri))  # may change the working directory
    folder = Folder(uri)
    require_outside_runs("--out", folder)
    return folder


def require_same_models(folder: Folder, configs: Sequence[RunConfig]) -> None:
    """Refuse to add runs of changed packaged models, whose references stay the same, to an ablation.

    Raises:
        RunError: the files of such a model have changed since the ablation was started.
    """
    scorers = {model.ref for config in configs for model in config.clip.scorers}
    refs = sorted(scorers | {config.captioner.ref for config in configs})
    found = {ref: files_of(WEIGHTS / ref.removeprefix(PACKAGED)) for ref in refs if ref.startswith(PACKAGED)}
    stored = folder.read_json(MODELS) if folder.exists(MODELS) else {}
    changed = [ref for ref, files in found.items() if stored.get(ref, files) != files]
    if changed:
        raise RunError(
            f"{folder.uri}: {', '.join(changed)} changed since the ablation was started, so its finished runs cannot be"
            " compared with new ones",
            "choose another folder with --out",
        )
    folder.write_json(MODELS, {**stored, **found})


def _preflight(tasks: Sequence[Task], console: Console) -> None:
    """Run preflight once for all runs that have the same models, images and resources.

    Raises:
        PreflightError: a check failed.
    """
    from ray_jobs.commands.preflight_table import require

    checked = set()
    for task in tasks:
        config = task.config
        sections = (
            config.captioner,
            config.clip,
            config.source,
            config.imported,
            config.evaluate.source,
            config.models,
        )
        resources = (config.generate.resources, config.score.resources, config.train.resources, config.ray)
        key = repr((*sections, *resources))
        if key not in checked:
            checked.add(key)
            require(config, console)


def _run(
    ablation: Ablation,
    tasks: Sequence[Task],
    folder: Folder,
    parallel: int | None,
    console: Console,
    write: Callable[[Mapping[int, str]], object],
) -> dict[int, str]:
    """Run the tasks on one cluster; return the errors of those that failed, by position."""
    display = ConsoleDisplay(console, ablation, tasks)
    configs = [task.config for task in tasks]
    config = configs[0]
    if config.ray.cluster_address is None:
        parallel = parallel or parallel_runs(configs, [_this_machine(config)])
        config = _with_cpus(configs, parallel)
    with _workspace(folder) as workspace, Cluster(config) as cluster:
        cluster.ensure()
        number = parallel or parallel_runs(configs, alive_nodes())
        count = f"{len(tasks)} runs ({len(ablation.cells)} cells, {len(ablation.seeds)} seeds), {number} at a time"
        console.print(f"{ablation.name}: {count}; {folder.uri}", soft_wrap=True)
        drivers = Drivers(tasks, number, workspace, {"RAY_ADDRESS": _address()}, display)
        display.after_each = lambda: write(drivers.errors)
        with display.live():
            drivers.run()
    return drivers.errors


def parallel_runs(configs: Sequence[RunConfig], nodes: Sequence[Node]) -> int:
    """Number of runs whose largest stages fit on the nodes at the same time, at least one."""
    fitting = []
    for section in _sections(configs):
        one_replica = section.resources.model_copy(update={"replicas": UNLIMITED})
        fitting.append(sum(replicas_on(node, one_replica) for node in nodes) // section.resources.replicas)
    return max(1, min(fitting))


def _sections(configs: Sequence[RunConfig]) -> list[Generate | Score | Train]:
    """The stages that reserve resources, of all configurations."""
    return [section for config in configs for section in (config.generate, config.score, config.train)]


def _this_machine(config: RunConfig) -> Node:
    """The resources of this machine, with ``ray.num_cpus`` logical CPUs if that is set."""
    driver = nvidia_driver()
    return {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": len(driver.gpus) if driver else 0}


def _with_cpus(configs: Sequence[RunConfig], parallel: int) -> RunConfig:
    """The configuration of a local session with as many logical CPUs as parallel runs reserve."""
    config = configs[0]
    if config.ray.num_cpus is not None:
        return config
    needed = max(section.resources.replicas * section.resources.cpus for section in _sections(configs))
    ray = config.ray.model_copy(update={"num_cpus": max(4, math.ceil(parallel * needed) + 1)})
    return config.model_copy(update={"ray": ray})


def _address() -> str:
    """The address of the session for other drivers."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def _workspace(folder: Folder) -> Iterator[Path]:
    """A local folder for configurations and logs: that of the cells, or a temporary one that is uploaded at the end."""
    cells = folder / "cells"
    if cells.is_local:
        yield Path(cells.path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            yield Path(temporary)
        finally:
            cells.upload(temporary)


def _cell_runs(whole: Ablation, folder: Folder, tasks: Sequence[Task], errors: Mapping[int, str]) -> list[CellRun]:
    """The runs of this command, and those of other cells and seeds that the folder already holds."""
    messages = {tasks[position].config.run: error for position, error in errors.items()}
    chosen = {(task.cell, task.seed) for task in tasks}
    runs = []
    for cell in whole.cells:
        for seed in sorted({*whole.seeds, *(seed for _, seed in chosen)}):
            path = run_path(cell.name, seed)
            if (cell.name, seed) in chosen or (folder / path).exists(CONFIG):
                runs.append(CellRun(cell.name, seed, path, messages.get((folder / path).uri, "")))
    return runs

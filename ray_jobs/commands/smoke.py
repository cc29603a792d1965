"""The end of ``jsfree run --smoke``: measures the published models where the GPUs are and shows the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree import schemas
from jsfree.checks.smoke import Check, Reloaded, examine, reload
from jsfree.config import RunConfig
from jsfree.errors import JsfreeError, StageError
from jsfree.gpus import device_of
from jsfree.run.storage import Run, shard_name
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.cluster.session import Cluster

RESULT = "smoke.json"


def smoke(run: Run, console: Console) -> None:
    """Check a finished run, show the checks as a table and keep them in ``smoke.json``.

    Raises:
        StageError: a check failed.
    """
    with Cluster(run.config) as cluster:
        cluster.ensure()
        reloaded = {number: reloaded_model(run, number) for number in range(1, run.config.rounds + 1)}
    checks = examine(run, reloaded)
    run.folder.write_json(RESULT, [asdict(check) for check in checks])
    console.print(table(checks))
    failed = [check for check in checks if not check.passed]
    if failed:
        for check in failed:
            console.print(Text.assemble((check.name, "bold"), f": {check.remedy}"), soft_wrap=True)
        names = ", ".join(check.name for check in failed)
        raise StageError(
            f"{len(failed)} of {len(checks)} smoke checks failed: {names}", f"see {run.folder.uri}/{RESULT}"
        )


def reloaded_model(run: Run, number: int) -> Reloaded | JsfreeError:
    """What the model of a round does when a worker of generation loads it again."""
    import ray

    config, resources = run.config, run.config.generate.resources
    before = run.stage(number - 1, "model").uri if number > 1 else config.captioner.versioned_ref
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(_reload)
    try:
        with unwrap_errors("smoke"):
            found: Reloaded = ray.get(
                task.options(accelerator_type=resources.accelerator_type).remote(config, number, before)
            )
            return found
    except JsfreeError as error:
        return error


def _reload(config: RunConfig, number: int, before: str) -> Reloaded:
    """In a worker: the first shard of the evaluation, as it was captioned."""
    run = Run(config)
    samples = run.stage(1, "evaluation").read_table(shard_name(0), schemas.SAMPLES).to_pylist()
    device = device_of(config.generate.resources.gpus)
    return reload(config, before, run.stage(number, "model").uri, samples, f"m{number}", device)


def table(checks: Sequence[Check]) -> Table:
    """The checks as a table."""
    shown = Table(title="Smoke run", title_justify="left")
    shown.add_column("check", no_wrap=True)
    shown.add_column("")
    shown.add_column("finding")
    for check in checks:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        shown.add_row(Text(check.name), verdict, Text(check.finding))
    return shown

"""``jsfree run --smoke``: loads each round's model in a worker, measures it, and checks the run's results."""

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
    """Check a finished run, print the checks as a table and write them to ``smoke.json``.

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
    for check in failed:
        console.print(Text.assemble((check.name, "bold"), f": {check.remedy}"), soft_wrap=True)
    if failed:
        names = ", ".join(check.name for check in failed)
        raise StageError(
            f"{len(failed)} of {len(checks)} smoke checks failed: {names}", f"see {run.folder.uri}/{RESULT}"
        )


def reloaded_model(run: Run, number: int) -> Reloaded | JsfreeError:
    """Load the model of a round in a generation worker and measure it; an error is returned."""
    import ray

    config, resources = run.config, run.config.generate.resources
    before = run.stage(number - 1, "model").uri if number > 1 else config.captioner.versioned_ref
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(_reload)
    try:
        with unwrap_errors("smoke"):
            options = task.options(accelerator_type=resources.accelerator_type)
            reloaded: Reloaded = ray.get(options.remote(config, number, before))
            return reloaded
    except JsfreeError as error:
        return error


def _reload(config: RunConfig, number: int, before: str) -> Reloaded:
    """In a worker: measure the model on the first shard of the evaluation set."""
    run = Run(config)
    samples = run.stage(1, "evaluation").read_table(shard_name(0), schemas.SAMPLES).to_pylist()
    device = device_of(config.generate.resources.gpus)
    return reload(config, before, run.stage(number, "model").uri, samples, f"m{number}", device)


def table(checks: Sequence[Check]) -> Table:
    """The checks as a table."""
    result = Table(title="Smoke run", title_justify="left")
    result.add_column("check", no_wrap=True)
    result.add_column("")
    result.add_column("finding")
    for check in checks:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        result.add_row(Text(check.name), verdict, Text(check.finding))
    return result

"""``jsfree run --smoke``: loads each round's model in a worker, measures it, and checks the run's results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree import schemas
from jsfree.checks.findings import Finding, Verdict
from jsfree.checks.smoke import Reloaded, examine, reload
from jsfree.config import RunConfig
from jsfree.errors import JsfreeError, StageError
from jsfree.evaluation.rounds_stop import last_round
from jsfree.gpus import device_of
from jsfree.run.folder import shard_name
from jsfree.run.run import Run
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
        reloaded = {number: reloaded_model(run, number) for number in range(1, last_round(run) + 1)}
    findings = examine(run, reloaded)
    run.folder.write_json(RESULT, [_as_json(finding) for finding in findings])
    console.print(table(findings))
    failed = [finding for finding in findings if finding.verdict is Verdict.FAILS]
    for finding in failed:
        console.print(Text.assemble((finding.name, "bold"), f": {finding.remedy}"), soft_wrap=True)
    if failed:
        names = ", ".join(finding.name for finding in failed)
        raise StageError(
            f"{len(failed)} of {len(findings)} smoke checks failed: {names}", f"see {run.folder.uri}/{RESULT}"
        )


def _as_json(finding: Finding) -> dict[str, str | bool]:
    passed = finding.verdict is not Verdict.FAILS
    return {"name": finding.name, "passed": passed, "finding": finding.found, "remedy": finding.remedy}


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


def table(findings: Sequence[Finding]) -> Table:
    """The findings as a table."""
    result = Table(title="Smoke run", title_justify="left")
    result.add_column("check", no_wrap=True)
    result.add_column("")
    result.add_column("finding")
    for finding in findings:
        verdict = Text("FAIL", "bold red") if finding.verdict is Verdict.FAILS else Text("pass", "green")
        result.add_row(Text(finding.name), verdict, Text(finding.found))
    return result

"""The end of ``jsfree run --smoke``: measures the published models where the GPUs are and shows the checks."""

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
from jsfree.gpus import device_of
from jsfree.run.folder import shard_name
from jsfree.run.run import Run
from ray_jobs.cluster.session import Cluster, explained

RESULT = "smoke.json"


def smoke(run: Run, console: Console) -> None:
    """Check a finished run, show the checks as a table and keep them in ``smoke.json``.

    Raises:
        StageError: a check failed.
    """
    with Cluster(run.config) as cluster:
        cluster.ensure()
        reloaded = {number: reloaded_model(run, number) for number in range(1, run.config.rounds + 1)}
    findings = examine(run, reloaded)
    run.folder.write_json(RESULT, [_as_json(finding) for finding in findings])
    console.print(table(findings))
    failed = [finding for finding in findings if finding.verdict is Verdict.FAILS]
    if failed:
        for finding in failed:
            console.print(Text.assemble((finding.name, "bold"), f": {finding.remedy}"), soft_wrap=True)
        names = ", ".join(finding.name for finding in failed)
        raise StageError(
            f"{len(failed)} of {len(findings)} smoke checks failed: {names}", f"see {run.folder.uri}/{RESULT}"
        )


def _as_json(finding: Finding) -> dict[str, str | bool]:
    passed = finding.verdict is not Verdict.FAILS
    return {"name": finding.name, "passed": passed, "finding": finding.found, "remedy": finding.remedy}


def reloaded_model(run: Run, number: int) -> Reloaded | JsfreeError:
    """What the model of a round does when a worker of generation loads it again."""
    import ray

    config, resources = run.config, run.config.generate.resources
    before = run.stage(number - 1, "model").uri if number > 1 else config.captioner.versioned_ref
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(_reload)
    try:
        with explained("smoke"):
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


def table(findings: Sequence[Finding]) -> Table:
    """The findings as a table."""
    shown = Table(title="Smoke run", title_justify="left")
    shown.add_column("check", no_wrap=True)
    shown.add_column("")
    shown.add_column("finding")
    for finding in findings:
        verdict = Text("FAIL", "bold red") if finding.verdict is Verdict.FAILS else Text("pass", "green")
        shown.add_row(Text(finding.name), verdict, Text(finding.found))
    return shown

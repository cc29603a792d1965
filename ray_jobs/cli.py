"""The command line: ``jsfree ...``, also ``python -m ray_jobs.cli ...``.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 or 143 stopped by a signal. An error is printed as one line;
``--debug`` adds its traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import jsfree
from jsfree import config as configuration
from jsfree.errors import ConfigError, JsfreeError
from jsfree.exchange.exporting import Pairs
from jsfree.exchange.formats import Placement
from jsfree.run.folder import Folder
from jsfree.run.locations import require_own_folder
from jsfree.run.run import Run
from jsfree.run.stages import STAGES
from jsfree.uris import has_scheme
from ray_jobs.cluster.jobs import prepare_for_job
from ray_jobs.commands import miniworld, serve_command
from ray_jobs.commands.ablate import ablate
from ray_jobs.commands.benchmark import benchmark
from ray_jobs.commands.metrics_table import show_metrics
from ray_jobs.commands.options import (
    AsJson,
    ConfigFile,
    Debug,
    ExistingRun,
    FormatName,
    Price,
    RoundNumber,
    RunFolder,
    Settings,
    Smoke,
    set_log_level,
)
from ray_jobs.commands.reconstruct import reconstruct
from ray_jobs.commands.runs import compare, runs
from ray_jobs.commands.watch import watch
from ray_jobs.quiet import silence_libraries
from ray_jobs.signals import STOPPED, exit_on_signals, leave

RUN, STAGE, DATA, SERVICE = "Run", "Stages", "Models and data", "Service"
"""The groups of commands in ``jsfree --help``."""

app = typer.Typer(
    help="Judge-free self-improvement for multimodal language models (arXiv 2411.17760).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(miniworld.app, name="miniworld", rich_help_panel=DATA)
app.add_typer(serve_command.app, name="serve", rich_help_panel=SERVICE)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False, debug: Debug = False
) -> None:
    """Judge-free self-improvement for multimodal language models (arXiv 2411.17760)."""
    set_log_level(debug)
    if version:
        typer.echo(f"jsfree {jsfree.__version__}")
        raise typer.Exit


@app.command(rich_help_panel=RUN)
def run(
    config: ConfigFile = None,
    run: RunFolder = None,
    settings: Settings = None,
    restart: Annotated[
        str | None, typer.Option("--restart", metavar="STAGE", help="Redo this stage and all after it.")
    ] = None,
    check: Annotated[bool, typer.Option("--preflight/--no-preflight", help="Check everything first.")] = True,
    smoke: Smoke = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run all stages of all rounds, or resume a run that stopped."""
    set_log_level(debug)
    resolved = _resolve(config, run, settings)
    from ray_jobs import pipeline
    from ray_jobs.commands.console import Reporter

    console = _console(as_json)
    if check:
        from ray_jobs.commands.preflight_table import require

        require(resolved, console)
    page = pipeline.run(resolved, Reporter(console), restart)
    show_metrics(Run.existing(resolved.run), console, as_json)
    console.print(f"Report: {page}", soft_wrap=True)
    _print_next(console, ["jsfree", "serve", "--run", resolved.run], "compare before and after in a browser")
    if smoke:
        from ray_jobs.commands.smoke import smoke as check_parts

        check_parts(Run.existing(resolved.run), console)


@app.command(rich_help_panel=RUN)
def preflight(
    config: ConfigFile = None,
    run: RunFolder = None,
    settings: Settings = None,
    price: Price = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check settings, libraries, storage, images, models, memory and the cluster, without running anything."""
    set_log_level(debug)
    from ray_jobs.commands import preflight as checks
    from ray_jobs.commands.preflight_table import show

    try:
        result = checks.preflight(_resolve(config, run, settings))
    except ConfigError as error:
        result = checks.broken(error)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result, _console(False), price)
    raise typer.Exit(0 if result.works else 1)


@app.command(rich_help_panel=RUN)
def plan(
    config: ConfigFile = None,
    settings: Settings = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="KIND", help="Kind of GPU, e.g. a100-80g. Default: as configured.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Number of GPUs. Default: as configured.")] = None,
    price: Price = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="FILE", help="YAML file of a judge's settings, to estimate the cost of benchmarks."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Estimate memory, time and cost of a run on any hardware, without its images or weights."""
    set_log_level(debug)
    from jsfree.judge.settings import read_settings
    from ray_jobs.commands import preflight as checks
    from ray_jobs.commands.preflight_table import show

    planned = configuration.load(config, settings or [])
    if gpus is not None:
        planned = checks.with_gpus(planned, gpus)
    result = checks.plan(planned, gpu, None if judge is None else read_settings(judge))
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result, _console(False), price, every_way=True)
    raise typer.Exit(0 if result.works else 1)


def _stage_command(name: str) -> Callable[..., None]:
    """A command that runs one stage of one round."""

    def command(
        config: ConfigFile = None,
        run: RunFolder = None,
        number: RoundNumber = None,
        settings: Settings = None,
        debug: Debug = False,
    ) -> None:
        set_log_level(debug)
        resolved = _resolve(config, run, settings)
        from ray_jobs import pipeline
        from ray_jobs.commands.console import Reporter, plain_or_live

        console = plain_or_live()
        number = pipeline.run_stage(resolved, Reporter(console), name, number)
        order = list(STAGES)
        if name == order[-1]:
            show_metrics(Run.existing(resolved.run), console, as_json=False, number=number)
        else:
            following = order[order.index(name) + 1]
            _print_next(console, ["jsfree", following, "--round", str(number)], "with the same options")

    return command


for _name, _stage in STAGES.items():
    app.command(_name, help=_stage.summary, rich_help_panel=STAGE)(_stage_command(_name))


@app.command(rich_help_panel=RUN)
def report(run: ExistingRun, as_json: AsJson = False, debug: Debug = False) -> None:
    """Rebuild the report of a run and print its table of metrics."""
    set_log_level(debug)
    from jsfree.report.page import build_report

    existing = Run.existing(run)
    page = build_report(existing)
    console = _console(as_json)
    show_metrics(existing, console, as_json)
    console.print(f"Report: {page}", soft_wrap=True)


app.command(rich_help_panel=RUN)(watch)
app.command(rich_help_panel=RUN)(runs)
app.command(rich_help_panel=RUN)(compare)
app.command(rich_help_panel=RUN)(ablate)
app.command(rich_help_panel=RUN)(benchmark)
app.command(rich_help_panel=RUN)(reconstruct)


@app.command(rich_help_panel=DATA)
def export(
    run: ExistingRun,
    layout: FormatName,
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="Empty folder or URI to write to.")],
    number: Annotated[
        int | None, typer.Option("--round", help="Number of the round. Default: the last that has such pairs.")
    ] = None,
    pairs: Annotated[Pairs, typer.Option("--pairs", help="Pairs to export.")] = "selected",
    images: Annotated[
        Placement | None, typer.Option("--images", help="How to include images. Default: see docs/data.md.")
    ] = None,
    votes: Annotated[bool, typer.Option("--votes", help="Add the blind votes of the page, as votes.jsonl.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export the pairs of a run in the format of another trainer, with a data set card."""
    set_log_level(debug)
    from jsfree.exchange import export as export_pairs
    from jsfree.monitor.votes import export_votes

    done = export_pairs(Run.existing(run), layout, out, number, pairs, images)
    if votes:
        export_votes(Run.existing(run), Folder(out))
    if as_json:
        typer.echo(json.dumps(done.figures, indent=2))
        return
    console = _console(False)
    skipped = done.figures["left_out"]
    note = f", {skipped} skipped (their images cannot be used)" if skipped else ""
    exported = f"{done.figures['exported']} {pairs} pairs of round {done.figures['round']}{note}: {done.uri}"
    console.print(exported, soft_wrap=True)
    console.print(f"Card:   {done.uri}/README.md    (state the licence before you publish it)", soft_wrap=True)


@app.command("import", rich_help_panel=DATA)
def import_pairs(
    layout: FormatName,
    path: Annotated[str, typer.Option("--from", metavar="PATH", help="File of records, or a folder of such files.")],
    run: ExistingRun,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="PATH", help="Base of relative image paths. Default: the records' folder."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Import preference pairs from other projects, to score, select and train on them."""
    set_log_level(debug)
    given = {"format": layout, "path": _absolute(path), "images": _absolute(images) if images else None}
    imported = {f"imported.{key}": value for key, value in given.items() if value is not None}
    resolved = _resolve(config, run, settings, imported)
    from ray_jobs import pipeline
    from ray_jobs.commands.console import Reporter, plain_or_live

    console = plain_or_live()
    pipeline.run_stage(resolved, Reporter(console), "generate", 1)
    command = ["jsfree", "score"]
    if has_scheme(resolved.run):
        options = [configuration.format_override(key, value) for key, value in imported.items()]
        command += ["--run", resolved.run, *(part for option in options for part in ("--set", option))]
        _print_next(console, command, "with the same options")
    else:
        _print_next(console, [*command, "--config", f"{resolved.run}/config.yaml", "--run", resolved.run])


@app.command(rich_help_panel=DATA)
def publish(
    run: ExistingRun,
    to: Annotated[
        str,
        typer.Option("--to", metavar="TARGET", help="hf://owner/name or hf://owner/name@branch, a folder or a URI."),
    ],
    number: Annotated[
        int | None,
        typer.Option("--round", help="Number of the round. Default: the last, or the last good one (rounds_stop)."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the files to upload and what is missing.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Publish the model of a round on the Hugging Face hub or in a folder; exit code 1 if something is missing."""
    set_log_level(debug)
    from ray_jobs.commands.publish import publish_model

    result = publish_model(run, number, to, _console(as_json), private=private, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    if result["missing"]:
        raise typer.Exit(1)


@app.command("config", rich_help_panel=RUN)
def show_config(config: ConfigFile = None, settings: Settings = None, debug: Debug = False) -> None:
    """Print all settings with their values."""
    set_log_level(debug)
    typer.echo(configuration.load(config, settings or []).to_yaml(), nl=False)


def main() -> None:
    """Entry point: prints a ``JsfreeError`` as one line and exits with its exit code."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks must not end a run
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    if not debug:
        silence_libraries()
    exit_on_signals()
    try:
        app()
    except JsfreeError as error:
        if debug:
            raise
        _console(True).print(Text.assemble(("error:", "bold red"), " ", str(error)), soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > STOPPED:
            leave(ended.code)
        raise


def _console(as_json: bool) -> Console:
    """A console on stdout, or on stderr if stdout is for JSON."""
    from ray_jobs.commands.console import plain_or_live

    return plain_or_live(stderr=as_json)


def _resolve(
    config: Path | None, run: str | None, settings: list[str] | None, values: Mapping[str, str] | None = None
) -> configuration.RunConfig:
    """The configuration of a command; ``run`` and ``values`` are used literally and override ``settings``."""
    overrides = settings or []
    resolved = configuration.load(config, overrides, {**(values or {}), "run": run})
    if config is not None and run is None and not any(override.startswith("run=") for override in overrides):
        require_own_folder(config, resolved)
    return prepare_for_job(resolved)


def _print_next(console: Console, command: Sequence[str], remark: str = "") -> None:
    """Print a command that can be copied into a shell."""
    console.print(f"Next:   {shlex.join(command)}" + (f"    ({remark})" if remark else ""), soft_wrap=True)


def _absolute(path: str) -> str:
    """An absolute path or a URI, which stays valid when the run is resumed from another folder."""
    return path if has_scheme(path) else os.path.abspath(os.path.expanduser(path))


if __name__ == "__main__":
    main()

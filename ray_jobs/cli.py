"""The command line: ``jsfree ...``, also ``python -m ray_jobs.cli ...``.

Exit codes: 0 done, 1 a failure, 2 wrong usage, 130 or 143 stopped by a signal. Errors are one line each; ``--debug``
shows the traceback.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
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
from jsfree.run.locations import require_own_folder
from jsfree.run.run import Run
from jsfree.uris import has_scheme
from ray_jobs.cluster.jobs import settled
from ray_jobs.commands.metrics_table import show_metrics
from ray_jobs.signals import STOPPED, leave, stopper

app = typer.Typer(
    help="Judge-free self-improvement for multimodal language models (arXiv 2411.17760).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
miniworld = typer.Typer(help="The embedded world: drawn scenes, a tiny LLaVA, a tiny CLIP.", no_args_is_help=True)
app.add_typer(miniworld, name="miniworld")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; without it, MiniWorld's defaults.")]
RunFolder = Annotated[str | None, typer.Option("--run", help="Folder of the run (overrides the configuration).")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and log messages.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="End with a check of every part: a pass/fail table.")]
RoundNumber = Annotated[
    int | None, typer.Option("--round", help="Which round; without it, the first in which the stage is not done.")
]
Price = Annotated[float | None, typer.Option("--price", help="Of a device-hour, in any currency.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FormatName = Annotated[
    configuration.PairFormat, typer.Option("--format", help="Layout of the records (docs/data.md tells them).")
]

STAGES = {
    "generate": "Stage 1 alone: the samples, and two captions of each.",
    "score": "Stage 2 alone: CLIP scores of every sentence, and which pairs are inverted.",
    "select": "Stage 3 alone: the pairs of a moderate score gap.",
    "train": "Stage 4 alone: the round's model, by DPO.",
    "evaluate": "Stage 5 alone: captions before and after, metrics, report.",
}


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Judge-free self-improvement for multimodal language models (arXiv 2411.17760)."""
    if version:
        typer.echo(f"jsfree {jsfree.__version__}")
        raise typer.Exit


@app.command()
def run(
    config: ConfigFile = None,
    run: RunFolder = None,
    settings: Settings = None,
    restart: Annotated[str | None, typer.Option("--restart", metavar="STAGE", help="Redo from this stage.")] = None,
    check: Annotated[bool, typer.Option("--preflight/--no-preflight", help="Look first at what cannot work.")] = True,
    smoke: Smoke = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the whole loop, or take up a run where it stopped."""
    _log(debug)
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
    _print_next(console, ["jsfree", "report", "--run", resolved.run], "rebuild and print this table")
    if smoke:
        from ray_jobs.commands.smoke import smoke as check_parts

        check_parts(Run.existing(resolved.run), console)


@app.command()
def preflight(
    config: ConfigFile = None,
    run: RunFolder = None,
    settings: Settings = None,
    price: Price = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find out in seconds what will not work: settings, libraries, storage, images, models, memory, the cluster."""
    _log(debug)
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


@app.command()
def plan(
    config: ConfigFile = None,
    settings: Settings = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Kind of GPU, such as a100-80g; else as configured.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="How many; as configured without it.")] = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Memory, hours and cost of a run on hardware that need not be there; images and weights are not touched."""
    from ray_jobs.commands import preflight as checks
    from ray_jobs.commands.preflight_table import show

    planned = configuration.load(config, settings or [])
    if gpus is not None:
        planned = checks.with_gpus(planned, gpus)
    result = checks.plan(planned, gpu)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result, _console(False), price, every_way=True)
    raise typer.Exit(0 if result.works else 1)


def _stage_command(name: str) -> Callable[..., None]:
    """The command that does one stage of one round."""

    def command(
        config: ConfigFile = None,
        run: RunFolder = None,
        number: RoundNumber = None,
        settings: Settings = None,
        debug: Debug = False,
    ) -> None:
        _log(debug)
        resolved = _resolve(config, run, settings)
        from ray_jobs import pipeline
        from ray_jobs.commands.console import Reporter, plain_or_live

        console = plain_or_live()
        number = pipeline.run_stage(resolved, Reporter(console), name, number)
        order = list(STAGES)
        if name == order[-1]:
            show_metrics(Run.existing(resolved.run), console, as_json=False, number=number)
        else:
            then = order[order.index(name) + 1]
            _print_next(console, ["jsfree", then, "--round", str(number)], "with the same options")

    return command


for _name, _help in STAGES.items():
    app.command(_name, help=_help)(_stage_command(_name))


@app.command()
def report(run: Annotated[str, typer.Option("--run", help="Folder of the run.")], as_json: AsJson = False) -> None:
    """Rebuild a run's report and print its before/after table."""
    from jsfree.report.page import build_report

    existing = Run.existing(run)
    page = build_report(existing)
    console = _console(as_json)
    show_metrics(existing, console, as_json)
    console.print(f"Report: {page}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[str, typer.Option("--run", help="Folder of the run.")],
    layout: FormatName,
    out: Annotated[str, typer.Option("--out", help="Folder or URI to write to; must be empty.")],
    number: Annotated[
        int | None, typer.Option("--round", help="Which round; without it, the last with such pairs.")
    ] = None,
    pairs: Annotated[Pairs, typer.Option("--pairs", help="Those to train on, or all that were scored.")] = "selected",
    images: Annotated[
        Placement | None, typer.Option("--images", help="Where images go; without it, as is usual for the format.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's pairs for another trainer, with a data set card."""
    from jsfree.exchange import export as write

    done = write(Run.existing(run), layout, out, number, pairs, images)
    if as_json:
        typer.echo(json.dumps(done.figures, indent=2))
        return
    console = _console(False)
    left = f", {done.figures['left_out']} left out (their images cannot be used)" if done.figures["left_out"] else ""
    told = f"{done.figures['exported']} {pairs} pairs of round {done.figures['round']}{left}: {done.uri}"
    console.print(told, soft_wrap=True)
    console.print(f"Card:   {done.uri}/README.md    (state the licence before you publish it)", soft_wrap=True)


@app.command("import")
def import_pairs(
    layout: FormatName,
    path: Annotated[str, typer.Option("--from", help="File of records, or a folder of them.")],
    run: Annotated[str, typer.Option("--run", help="Folder of the run.")],
    images: Annotated[
        str | None, typer.Option("--images", help="Where relative image paths start; without it, beside the records.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Read somebody else's pairs into a run, to be scored, selected and trained on."""
    _log(debug)
    given = {"format": layout, "path": _absolute(path), "images": _absolute(images) if images else None}
    imported = {f"imported.{key}": value for key, value in given.items() if value is not None}
    resolved = _resolve(config, run, settings, imported)
    from ray_jobs import pipeline
    from ray_jobs.commands.console import Reporter, plain_or_live

    console = plain_or_live()
    pipeline.run_stage(resolved, Reporter(console), "generate", 1)
    command = ["jsfree", "score"]
    if has_scheme(resolved.run):
        options = [configuration.as_override(key, value) for key, value in imported.items()]
        command += ["--run", resolved.run, *(part for option in options for part in ("--set", option))]
        _print_next(console, command, "with the same options")
    else:
        _print_next(console, [*command, "--config", f"{resolved.run}/config.yaml", "--run", resolved.run])


@app.command()
def serve(
    run: Annotated[str, typer.Option("--run", help="Folder of a finished run.")],
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; loopback by default.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; 8000 by default.")] = None,
    settings: Settings = None,
    write_yaml: Annotated[
        Path | None, typer.Option("--write-yaml", metavar="FILE", help="Write this for `serve deploy`; start nothing.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Answer HTTP with the models of a run, before and after: an OpenAI-compatible API on Ray Serve."""
    _log(debug)
    from ray_jobs.commands import serve as serve_models

    given = {"serve.host": host, "serve.port": port}
    named = [configuration.as_override(key, value) for key, value in given.items() if value is not None]
    overrides = [*(settings or []), *named]
    if write_yaml is not None:
        serve_models.write_yaml(run, overrides, write_yaml, _console(False))
    else:
        serve_models.serve_models(run, overrides, _console(False))


@app.command()
def publish(
    run: Annotated[str, typer.Option("--run", help="Folder of the run.")],
    to: Annotated[str, typer.Option("--to", help="hf://owner/name[@branch], or a folder or URI.")],
    number: Annotated[int | None, typer.Option("--round", help="Which round's model; the last one without it.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is for its owner alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and what is missing.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Give a round's model to others: on the Hugging Face hub, or as a folder. Exit code 1 if something is missing."""
    _log(debug)
    from ray_jobs.commands.publish import publish_model

    told = publish_model(run, number, to, _console(as_json), private=private, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    if told["missing"]:
        raise typer.Exit(1)


@app.command("config")
def show_config(config: ConfigFile = None, settings: Settings = None) -> None:
    """Print the resolved configuration."""
    typer.echo(configuration.load(config, settings or []).to_yaml(), nl=False)


@miniworld.command("show")
def miniworld_show(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("runs/miniworld.png"),
    split: Annotated[str, typer.Option(help="pretrain, unlabelled, development or test.")] = "unlabelled",
    count: Annotated[int, typer.Option(min=1, max=200, help="Scenes on the sheet.")] = 12,
) -> None:
    """Draw a sheet of scenes with their true captions."""
    from jsfree.miniworld.sheet import picture_sheet

    picture_sheet(split, count, out)
    typer.echo(f"{count} scenes: {out}")


@miniworld.command("pretrain")
def miniworld_pretrain(
    out: Annotated[Path, typer.Option(help="Folder to write captioner/ and clip/ into.")] = Path("runs/weights"),
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data order.")] = 0,
) -> None:
    """Rebuild the tiny CLIP and the tiny LLaVA from nothing."""
    from jsfree.pretraining.pretrain import pretrain
    from ray_jobs.commands.console import Reporter

    reporter = Reporter()
    pretrain(out, seed=seed, progress=reporter.parts())
    reporter.say(f"Weights: {out}")


def main() -> None:
    """Entry point: errors of ours become one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that a terminal does not have ends no run
    stop = stopper(os.dup(2))  # while Ray starts, what goes to stderr is lost
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except JsfreeError as error:
        if "--debug" in sys.argv:
            raise
        _console(True).print(Text.assemble(("error:", "bold red"), " ", str(error)), soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > STOPPED:
            leave(ended.code)
        raise


def _console(as_json: bool) -> Console:
    """On stdout, or on stderr when stdout is for JSON."""
    from ray_jobs.commands.console import plain_or_live

    return plain_or_live(stderr=as_json)


def _resolve(
    config: Path | None, run: str | None, settings: list[str] | None, values: Mapping[str, str] | None = None
) -> configuration.RunConfig:
    """The configuration of a command; ``--run`` and ``values`` are taken as they are typed, and win over ``--set``."""
    overrides = settings or []
    resolved = configuration.load(config, overrides, {**(values or {}), "run": run})
    if config is not None and run is None and not any(override.startswith("run=") for override in overrides):
        require_own_folder(config, resolved)
    return settled(resolved)


def _print_next(console: Console, command: Sequence[str], remark: str = "") -> None:
    """Print a command to copy into a shell."""
    console.print(f"Next:   {shlex.join(command)}" + (f"    ({remark})" if remark else ""), soft_wrap=True)


def _absolute(path: str) -> str:
    """A path that means the same wherever the run is taken up."""
    return path if has_scheme(path) else os.path.abspath(os.path.expanduser(path))


def _log(debug: bool) -> None:
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, format="%(name)s: %(message)s")


if __name__ == "__main__":
    main()

"""The command line: ``jsfree ...``, also ``python -m ray_jobs.cli ...``.

Exit codes: 0 done, 1 a failure, 2 wrong usage, 130 or 143 stopped by a signal. Errors are one line each; ``--debug``
shows the traceback.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

import jsfree
from jsfree import config as configuration
from jsfree.errors import JsfreeError
from jsfree.storage import Run
from ray_jobs.jobs import settled

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
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

STAGES = {
    "generate": "Stage 1 alone: the samples, and two captions of each.",
    "score": "Stage 2 alone: CLIP scores of every sentence, and which pairs are inverted.",
    "select": "Stage 3 alone: the pairs of a moderate score gap.",
    "train": "Stage 4 alone: the round's model, by DPO.",
    "evaluate": "Stage 5 alone: captions before and after, metrics, report.",
}

STOPPED = 128  # and the number of the signal: the exit code, as shells have it

SHOWN = {
    "response_hallucination": ("Responses with an absent object", "%"),
    "mention_hallucination": ("Absent among mentions", "%"),
    "recall": ("Recall", "%"),
    "precision": ("Precision", "%"),
    "f1": ("F1", "%"),
    "duplicates": ("Repeated mentions", ""),
    "attribute_errors": ("Attribute errors", ""),
    "words": ("Words", ""),
    "clip_score": ("CLIP score, x100", "%"),
    "low_clip_sentences": ("Low CLIP sentences", "%"),
    "repeated_sentences": ("Repeated sentences", ""),
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
    smoke: Smoke = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the whole loop, or take up a run where it stopped."""
    _log(debug)
    resolved = _resolve(config, run, settings)
    from ray_jobs import pipeline
    from ray_jobs.console import Reporter

    console = _console(as_json)
    page = pipeline.run(resolved, Reporter(console), restart)
    _show(Run.existing(resolved.run), console, as_json)
    console.print(f"Report: {page}", soft_wrap=True)
    console.print(f"Next:   jsfree report --run {resolved.run}    (rebuild and print this table)", soft_wrap=True)
    if smoke:
        from ray_jobs.smoke_run import smoke as check

        check(Run.existing(resolved.run), console)


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
        from ray_jobs.console import Reporter, plain_or_live

        console = plain_or_live()
        number = pipeline.run_stage(resolved, Reporter(console), name, number)
        order = list(STAGES)
        if name == order[-1]:
            _show(Run.existing(resolved.run), console, as_json=False, number=number)
        else:
            then = order[order.index(name) + 1]
            console.print(f"Next:   jsfree {then} --round {number}    (with the same options)", soft_wrap=True)

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
    _show(existing, console, as_json)
    console.print(f"Report: {page}", soft_wrap=True)


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
    from ray_jobs import serve_models

    given = {"serve.host": host, "serve.port": port}
    overrides = [*(settings or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
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
    from ray_jobs.publish_model import publish_model

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
    from jsfree.miniworld.pretrain import pretrain
    from ray_jobs.console import Reporter

    reporter = Reporter()
    pretrain(out, seed=seed, progress=reporter.parts())
    reporter.say(f"Weights: {out}")


def main() -> None:
    """Entry point: errors of ours become one line and an exit code."""
    stop = _stopper(os.dup(2))  # while Ray starts, what goes to stderr is lost
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except JsfreeError as error:
        if "--debug" in sys.argv:
            raise
        _console(True).print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > STOPPED:
            _leave(ended.code)
        raise


def _stopper(stderr: int) -> Callable[[int, FrameType | None], None]:
    """What SIGTERM and Ctrl-C do: say at once that the run is stopped, then leave; a second signal kills."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.write(stderr, b"stopped; what was finished stays, and the same command goes on from there\n")
        raise SystemExit(STOPPED + number)

    return stop


def _leave(code: int) -> NoReturn:
    """End without taking Python and its libraries down piece by piece: `ray job stop` kills after three seconds."""
    atexit._run_exitfuncs()  # a Ray session that was only half started ends there
    sys.stdout.flush()
    os._exit(code)


def _console(as_json: bool) -> Console:
    """On stdout, or on stderr when stdout is for JSON."""
    from ray_jobs.console import plain_or_live

    return plain_or_live(stderr=as_json)


def _resolve(config: Path | None, run: str | None, settings: list[str] | None) -> configuration.RunConfig:
    overrides = [*(settings or []), *([f"run={run}"] if run else [])]
    return settled(configuration.load(config, overrides))


def _log(debug: bool) -> None:
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, format="%(name)s: %(message)s")


def _show(run: Run, console: Console, as_json: bool, number: int | None = None) -> None:
    """Print a round's metrics, the last one's unless told: with truth where it is known, label-free elsewhere."""
    rounds = range(1, run.config.rounds + 1) if number is None else [number]
    done = [number for number in rounds if run.round(number).exists("label_free.json")]
    if not done:
        return
    folder = run.round(done[-1])
    metrics = folder.read_json("metrics.json" if folder.exists("metrics.json") else "label_free.json")
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    console.print(_table(metrics, f"m{done[-1]}"))


def _table(metrics: dict[str, Any], after: str) -> Table:
    modes = list(metrics["before"])
    count = metrics.get("scenes", metrics.get("captions"))
    table = Table(
        title=f"Before (m0) and after ({after}) on {count} images: %, or counts a caption; 95 % intervals",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}: m0", justify="right")
        table.add_column(f"{mode}: {after}", justify="right")
    for key, (label, unit) in SHOWN.items():
        if key in metrics["before"][modes[0]]:
            cells = [_cell(metrics[when][mode][key], unit) for mode in modes for when in ("before", "after")]
            table.add_row(label, *cells)
    return table


def _cell(estimate: dict[str, float], unit: str) -> str:
    if unit == "%":
        value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
        return f"{value:.1f} [dim]{low:.1f}-{high:.1f}[/dim]"
    return f"{estimate['value']:.2f} [dim]{estimate['low']:.2f}-{estimate['high']:.2f}[/dim]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()

"""``jsfree miniworld``: MiniWorld's pictures and weights."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jsfree.miniworld.exporting import Layout
from jsfree.miniworld.wording import World
from ray_jobs.commands.options import Debug, set_log_level

app = typer.Typer(help="The built-in test data: drawn scenes, a tiny LLaVA and a tiny CLIP.", no_args_is_help=True)


@app.command("show")
def show(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("runs/miniworld.png"),
    split: Annotated[str, typer.Option(help="pretrain, unlabelled, development or test.")] = "unlabelled",
    count: Annotated[int, typer.Option(min=1, max=200, help="Number of scenes.")] = 12,
    world: Annotated[
        World, typer.Option(help="Captions. plain: one sentence per object; prose: several objects in a sentence.")
    ] = "plain",
    debug: Debug = False,
) -> None:
    """Draw scenes with their true captions into one picture."""
    set_log_level(debug)
    from jsfree.miniworld.sheet import picture_sheet

    picture_sheet(split, count, out, world)
    typer.echo(f"{count} scenes: {out}")


@app.command("export")
def export(
    layout: Annotated[Layout, typer.Option(help="Files of CHAIR and Object HalBench (coco), or of another suite.")],
    out: Annotated[Path, typer.Option(help="New or empty folder to write into.")],
    split: Annotated[str, typer.Option(help="pretrain, unlabelled, development or test.")] = "test",
    first: Annotated[int, typer.Option(min=0, help="Index of the first scene.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 600,
    world: Annotated[World, typer.Option(help="Reference captions: plain or prose.")] = "plain",
    debug: Debug = False,
) -> None:
    """Write scenes with their truth in the layout of a benchmark."""
    set_log_level(debug)
    from jsfree.miniworld.exporting import export_scenes

    written = export_scenes(layout, split, first, count, out, world)
    typer.echo(f"{', '.join(f'{number} {what}' for what, number in written.items())}: {out}")


@app.command("pretrain")
def pretrain(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write into: captioner/ and clip/, or prose-captioner/ and prose-clip/, or qwen-captioner/."
        ),
    ] = Path("runs/weights"),
    world: Annotated[
        World, typer.Option(help="Captions to learn from. plain: one sentence per object; prose: several.")
    ] = "plain",
    family: Annotated[
        Literal["llava", "qwen3_vl"],
        typer.Option(help="Model family of the captioner; qwen3_vl only for --world plain."),
    ] = "llava",
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the order of the data.")] = 0,
    debug: Debug = False,
) -> None:
    """Train the tiny CLIP and the tiny LLaVA.

    Both start from scratch; with --world prose they start from the plain CLIP's vision tower. With --family qwen3_vl,
    only a tiny Qwen3-VL captioner is trained.
    """
    set_log_level(debug)
    if family != "llava" and world != "plain":
        raise typer.BadParameter(f"captions of the world {world!r} are learnt by a LLaVA only", param_hint="--family")
    from jsfree.pretraining.pretrain import pretrain, pretrain_prose, pretrain_qwen
    from ray_jobs.commands.console import Reporter

    reporter = Reporter()
    train = pretrain_qwen if family == "qwen3_vl" else pretrain_prose if world == "prose" else pretrain
    train(out, seed=seed, progress=reporter.parts())
    reporter.say(f"Weights: {out}")

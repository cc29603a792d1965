"""``jsfree reconstruct``: pictures of what captions say, compared with the images, for the models of a run."""

# No `from __future__ import annotations`: Typer reads these annotations when the command is registered.

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.reconstruction import Painter, Reconstruction
from jsfree.run.folder import Folder
from ray_jobs.commands.benchmark_tables import legend, results_table
from ray_jobs.commands.options import AsJson, Debug, ExistingRun, Settings, set_log_level

DRAWN = "miniworld"
"""In the place of an image model's settings: MiniWorld's own drawing."""


def reconstruct(
    run: ExistingRun,
    painter: Annotated[
        str,
        typer.Option(
            "--painter", metavar="FILE", help="YAML file of an image model's settings, or miniworld to draw scenes."
        ),
    ] = DRAWN,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of evaluation images, from the first.")] = 24,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Model of the run, such as m1. Default: all. m0 is always measured."
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn captions back into images, and compare these with the originals."""
    set_log_level(debug)
    from jsfree.images.sources import evaluation_samples
    from ray_jobs.commands.benchmark_models import find_models, measure_models
    from ray_jobs.commands.console import plain_or_live

    console = plain_or_live(stderr=as_json)
    measured = find_models(run, models or [], settings or [])
    config = measured.config
    if painter == DRAWN and config.evaluate.source.kind != "miniworld":
        raise ConfigError("only scenes of MiniWorld can be drawn by rules", "name an image model with --painter FILE")
    samples = list(islice(evaluation_samples(config), count))
    target = Folder(f"{Folder(config.run).uri}/evaluation/{Reconstruction.name}")
    suite = Reconstruction(samples, _painter(painter), config, target)
    results, stopped = measure_models([(suite, suite.questions(Path()))], Path(), measured, 1, None, console)
    if stopped is not None:
        raise stopped
    of_suite = results[suite.name]
    if as_json:
        typer.echo(json.dumps(of_suite, indent=2))
        return
    console.print(legend([(suite, of_suite)]), soft_wrap=True, highlight=False)
    console.print(results_table([(suite, of_suite)]))
    console.print(f"Pictures: {target.uri}/pictures; see them with `jsfree report`.", soft_wrap=True)


def _painter(named: str) -> Painter:
    if named == DRAWN:
        from jsfree.evaluation.benchmarks.miniworld_painter import ScenePainter

        return ScenePainter()
    from jsfree.evaluation.benchmarks.image_painter import ImagePainter, read_painter_settings

    return ImagePainter(read_painter_settings(named))

"""``jsfree ablate``: variants of a configuration with several seeds on one cluster, compared in one report."""

from pathlib import Path
from typing import Annotated

import typer

from jsfree.errors import ConfigError
from ray_jobs.commands.options import AsJson, Debug, Settings, set_log_level

AblationPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="YAML file of the cells (variants), see configs/ablations/.")
]


def ablate(
    file: AblationPath,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Folder or URI. Default: runs/ablations/<name>.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CELL", help="Run only this cell; * matches any text. Can be repeated."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N...", help="Seeds. Default: those of the file.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Runs at a time. Default: as many as the cluster holds.")
    ] = None,
    settings: Settings = None,
    check: Annotated[bool, typer.Option("--preflight/--no-preflight", help="Check everything first.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs and the stages that they share.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run variants of a configuration with several seeds, and compare the results. Shared stages are run only once."""
    set_log_level(debug)
    chosen = parse_seeds(seeds) if seeds is not None else ()
    from ray_jobs.ablation.running import run_ablation
    from ray_jobs.commands.console import plain_or_live

    run_ablation(
        file,
        out,
        plain_or_live(stderr=as_json),
        only=only or (),
        seeds=chosen,
        parallel=parallel,
        settings=settings or (),
        check=check,
        dry_run=dry_run,
        as_json=as_json,
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds separated by commas.

    Raises:
        ConfigError: one of them is not a whole number from 0 up.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--seeds {text!r} is not a list of whole numbers", "write, for example, --seeds 0,1,2")
    return tuple(dict.fromkeys(map(int, parts)))

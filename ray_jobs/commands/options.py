"""Command-line options that several commands share."""

# No `from __future__ import annotations`: Typer reads these annotations when the commands are registered.

import logging
from pathlib import Path
from typing import Annotated

import typer

from jsfree import config as configuration

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings. Default: MiniWorld's.")
]
RunFolder = Annotated[
    str | None, typer.Option("--run", metavar="PATH", help="Folder or URI of the run. Default: the setting 'run'.")
]
ExistingRun = Annotated[str, typer.Option("--run", metavar="PATH", help="Folder or URI of the run.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting. Can be repeated.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show log messages and, on an error, the traceback.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Check the result of every stage at the end.")]
RoundNumber = Annotated[
    int | None, typer.Option("--round", help="Number of the round. Default: the first that lacks this stage.")
]
Price = Annotated[float | None, typer.Option("--price", help="Price of one device for one hour, to show the cost.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FormatName = Annotated[
    configuration.PairFormat, typer.Option("--format", help="Format of the records, see docs/data.md.")
]


def set_log_level(debug: bool) -> None:
    """Show log messages from level INFO up if ``debug`` is set."""
    if debug:
        logging.getLogger().setLevel(logging.INFO)

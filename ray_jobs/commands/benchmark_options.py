"""Options of ``jsfree benchmark``."""

# No `from __future__ import annotations`: Typer reads these annotations when the command is registered.

from pathlib import Path
from typing import Annotated

import typer

from jsfree.evaluation.benchmarks.registry import BUILDERS

DEFAULT_RUN = "runs/benchmark"
ALL = "all"
"""In the place of suites: all of them whose files are present."""
SIMULATED = "miniworld"
"""In the place of a judge's settings: the simulated judge for the scenes of the data folder."""

Suites = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUITE...", help=f"{', '.join(BUILDERS)}; or all: every suite whose files are in --data."),
]
MeasuredRun = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="PATH",
        help=f"Run whose models are measured. With other models: folder of the results (default: {DEFAULT_RUN}).",
    ),
]
ModelRefs = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="REF",
        help="Hub id or folder of a model; with --run, a model of the run, such as m1. Can be repeated.",
    ),
]
VocabularyFile = Annotated[
    str | None,
    typer.Option("--vocabulary", metavar="FILE", help="File of object words and synonyms. Default: a built-in list."),
]
StackName = Annotated[str, typer.Option("--stack", help="chair: original, lemmas or lmms-eval.")]
ExtractorName = Annotated[str, typer.Option("--extractor", help="halbench: words, objects or judge.")]
Beams = Annotated[int, typer.Option("--beams", min=1, help="halbench: number of beams. 1: greedy decoding.")]
ViewCount = Annotated[int, typer.Option("--views", min=1, help="Views of each image that decoding averages.")]
Listing = Annotated[
    bool, typer.Option("--list", help="List the files that each suite needs, and whether --data has them.")
]
Answers = Annotated[
    Path | None, typer.Option("--answers", metavar="FILE", help="File of answers to score. No model is loaded.")
]
Data = Annotated[str | None, typer.Option("--data", metavar="FOLDER", help="Folder or URI with the suites' files.")]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="FILE",
        help="YAML file of a judge's settings, or miniworld (simulated). Given twice: measure how two judges agree.",
    ),
]
Budget = Annotated[
    float | None, typer.Option("--budget", min=0, help="Maximum cost of a judge, in the currency of its price table.")
]
Scoring = Annotated[str, typer.Option("--scoring", help="pope: original, vcd, lmms-eval or vlmevalkit.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Maximum tokens per answer. Default: that of each suite.")
]
Details = Annotated[
    Path | None, typer.Option("--details", metavar="FILE", help="File to write, with what was found in each answer.")
]
Vectors = Annotated[
    str | None,
    typer.Option(
        "--vectors",
        metavar="NAME",
        help="amber: spaCy model or file of word vectors. Default: words are not compared by similarity.",
    ),
]
Categories = Annotated[
    str | None,
    typer.Option("--categories", metavar="FILE", help="ic: YAML with the number of images of each category."),
]
NounStackName = Annotated[
    str, typer.Option("--nouns", help="amber: how nouns are found: rule, or nltk as in the original code.")
]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        "--trained-on",
        metavar="FILE",
        help="File that names the COCO images that the seed was trained on. Can be repeated.",
    ),
]

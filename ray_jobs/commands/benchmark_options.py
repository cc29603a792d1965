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
    typer.Argument(metavar="SUITE...", help=f"Any of {', '.join(BUILDERS)}, or all whose files --data has."),
]
MeasuredRun = Annotated[
    str | None,
    typer.Option("--run", metavar="PATH", help=f"Measure the models of this run. With --model: {DEFAULT_RUN}."),
]
ModelRefs = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="REF", help="Hub id or folder of a model, in place of a run's. Can be repeated."),
]
VocabularyFile = Annotated[
    str | None, typer.Option("--vocabulary", metavar="FILE", help="Object words. Default: the built-in ones.")
]
StackName = Annotated[str, typer.Option("--stack", help="chair: original, lemmas or lmms-eval.")]
ExtractorName = Annotated[str, typer.Option("--extractor", help="halbench: words, objects or judge.")]
Beams = Annotated[int, typer.Option("--beams", min=1, help="halbench: beams; 1 decodes by the engine.")]
ViewCount = Annotated[int, typer.Option("--views", min=1, help="Views of each image that decoding averages.")]
Listing = Annotated[bool, typer.Option("--list", help="List what each suite needs, and what --data lacks.")]
Answers = Annotated[
    Path | None, typer.Option("--answers", metavar="FILE", help="Score these answers; no model is loaded.")
]
Data = Annotated[str | None, typer.Option("--data", metavar="FOLDER", help="Folder or URI with the suites' files.")]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="FILE",
        help="YAML settings of the judge; a second one shows how they agree. miniworld: a simulated judge.",
    ),
]
Budget = Annotated[
    float | None, typer.Option("--budget", min=0, help="Maximum cost of a judge, in the currency of its price table.")
]
Scoring = Annotated[str, typer.Option("--scoring", help="pope: original, vcd, lmms-eval or vlmevalkit.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Limit of an answer. Default: the protocol's.")
]
Details = Annotated[Path | None, typer.Option("--details", metavar="FILE", help="Write what was found in each answer.")]
Vectors = Annotated[
    str | None,
    typer.Option("--vectors", metavar="NAME", help="amber: spaCy model or file of vectors. Default: no similarities."),
]
Categories = Annotated[
    str | None,
    typer.Option("--categories", metavar="FILE", help="ic: YAML with the number of images of each category."),
]
NounStackName = Annotated[str, typer.Option("--nouns", help="amber: rule, or nltk as in the original.")]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        "--trained-on", metavar="FILE", help="Names of images that the seed was trained on; COCO's are recognised."
    ),
]

"""The stages of a round, written once: their commands, their order, and the folders they write.

    samples -> pairs -> scored -> selected -> model -> captions -> metrics

``STAGES`` are the commands of ``jsfree``. Each depends on those before it, and the first stage of a round depends on
the stage ``MODEL_STAGE`` of the round before. ``PARTS`` are the folders of a round that have a manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jsfree.run.run import MANIFEST

METRICS, LABEL_FREE = "metrics.json", "label_free.json"
MODEL_STAGE = "train"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of a round with a manifest, or a folder of such folders.

    ``label`` describes it in the report; ``section`` is the section of the settings with its ``resources``.
    """

    name: str
    stage: str
    label: str
    section: str = ""
    per_model: bool = False
    """Whether there is one folder per model and evaluation mode, such as ``captions/m0-greedy``."""
    first_round_only: bool = False
    optional: bool = False
    """Whether a finished round may lack it."""
    writes: tuple[str, ...] = ()
    """All folders and files of the round that its work writes; by default the folder of its name."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command that does a part of every round; it is done when its last file, ``mark``, exists."""

    summary: str
    mark: str


STAGES = {
    "generate": Stage(summary="Stage 1: list the images and generate two captions for each.", mark=f"pairs/{MANIFEST}"),
    "score": Stage(
        summary="Stage 2: score every sentence with CLIP and invert pairs whose winner scores lower.",
        mark=f"scored/{MANIFEST}",
    ),
    "select": Stage(summary="Stage 3: select the pairs with a moderate score gap.", mark=f"selected/{MANIFEST}"),
    "train": Stage(summary="Stage 4: train the round's model with DPO.", mark=f"train/{MANIFEST}"),
    "evaluate": Stage(
        summary="Stage 5: caption evaluation images, compute metrics before and after, write the report.",
        mark=LABEL_FREE,
    ),
}
LAST_STAGE = "evaluate"
PARTS = {
    part.name: part
    for part in (
        Part(name="samples", stage="generate", label="images listed"),
        Part(name="evaluation", stage="evaluate", label="evaluation images listed", first_round_only=True),
        Part(
            name="evaluation_hashes",
            stage="evaluate",
            label="evaluation images hashed",
            first_round_only=True,
            optional=True,
        ),
        Part(name="pairs", stage="generate", label="two captions an image", section="generate"),
        Part(name="scored", stage="score", label="sentences scored", section="score"),
        Part(name="likelihoods", stage="score", label="log-probabilities under m0", section="generate", optional=True),
        Part(name="selected", stage="select", label="preference pairs"),
        Part(
            name="train",
            stage="train",
            label="DPO",
            section="train",
            writes=("reference", "features", "train", "model"),
        ),
        Part(name="captions", stage="evaluate", label="captions for evaluation", section="generate", per_model=True),
        Part(
            name="captions_scored",
            stage="evaluate",
            label="their CLIP scores",
            section="score",
            per_model=True,
            writes=("captions_scored", METRICS, LABEL_FREE),
        ),
    )
}
"""By name, in the order in which a round does them; the evaluation set is listed before the first pairs are made."""


def part_of(name: str) -> Part | None:
    """The part that a folder with a manifest belongs to: ``captions`` for ``captions/m0-greedy``."""
    return PARTS.get(name.partition("/")[0])


def restart_order() -> dict[str, tuple[str, ...]]:
    """The names that ``--restart`` accepts, in the order of stages, and the files and folders each part writes."""
    return {
        part.name: part.writes or (part.name,) for stage in STAGES for part in PARTS.values() if part.stage == stage
    }


def manifests_of_round(number: int, modes: Iterable[str]) -> list[str]:
    """Names of the folders that must have a manifest once round ``number`` is finished.

    Args:
        modes: names of the evaluation modes. The seed (m0) is captioned in the first round only.
    """
    models = [f"m{number}"] if number > 1 else ["m0", "m1"]
    names: list[str] = []
    for part in PARTS.values():
        if part.per_model:
            names += [f"{part.name}/{model}-{mode}" for model in models for mode in modes]
        elif not part.optional and (number == 1 or not part.first_round_only):
            names.append(part.name)
    return names

"""Draws what captions say as scenes of MiniWorld: the exact counterpart of an image model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsfree.errors import RowError
from jsfree.evaluation.miniworld import Mention, mentions
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, POSITIONS
from jsfree.miniworld.world import Scene, SceneObject, box_at, fair_positions, png_bytes, scene_from_id


def scene_of(caption: str) -> Scene:
    """The scene that a caption describes.

    Objects are drawn where the caption puts them; a second mention of an object is the same object. What it does not
    say is filled in: the first context, the first colour, and the first free place.
    """
    named = _by_noun(caption)
    free = [place for place in POSITIONS if place not in {mention.position for mention in named.values()}]
    objects = []
    for mention in named.values():
        place = mention.position or (free.pop(0) if free else POSITIONS[0])
        objects.append(SceneObject(mention.noun, mention.colour or next(iter(COLOURS)), place, box_at(place)))
    text = caption.lower()
    context = next((name for name in CONTEXTS if re.search(rf"\b{name}\b", text)), next(iter(CONTEXTS)))
    digest = hashlib.sha256(caption.encode()).hexdigest()[:16]
    return Scene(f"reconstruction-{digest}", "test", 0, context, tuple(objects))


class ScenePainter:
    """Draws captions as scenes; their similarity to scenes is known exactly."""

    def describe(self) -> Mapping[str, Any]:
        """The name, as results record it."""
        return {"model": "MiniWorld, drawn by its rules"}

    def summary(self) -> str:
        """A sentence for the notes of the result."""
        return "drawn by MiniWorld's own rules, not by an image model"

    def paint(self, captions: Sequence[str]) -> list[bytes | RowError]:
        """The picture of each caption, PNG."""
        return [png_bytes(scene_of(caption)) for caption in captions]

    def overlap(self, image_id: str, caption: str) -> Mapping[str, float]:
        """Numbers of objects in either scene, in both, and in both with the same colour and a fair place."""
        original = {item.name: item for item in scene_from_id(image_id).objects}
        named = _by_noun(caption)
        common = original.keys() & named.keys()
        alike = [name for name in common if _is_alike(original[name], named[name])]
        either = len(original.keys() | named.keys())
        return {"either": float(either), "common": float(len(common)), "alike": float(len(alike))}


def _by_noun(caption: str) -> dict[str, Mention]:
    """The first mention of each object, in the order of the caption."""
    found: dict[str, Mention] = {}
    for mention in mentions(caption):
        found.setdefault(mention.noun, mention)
    return found


def _is_alike(item: SceneObject, mention: Mention) -> bool:
    return mention.colour == item.colour and mention.position in fair_positions(item.box)

"""MiniWorld's scenes and sentences as arrays, from which pre-training takes its batches.

Shapes: N scenes, O objects, P positions, S sentences; side is the vision tower's grid in patches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jsfree.miniworld import world
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, OBJECTS, POSITIONS
from jsfree.miniworld.world import Scene

ABSENT = -1
"""Colour of an object that is not in the scene."""
UNSTATED = -1
"""Attribute that a sentence does not state."""


@dataclass(frozen=True)
class SceneTable:
    """Images of N scenes and their exact contents."""

    pixels: NDArray[np.uint8]  # (N, 3, 64, 64)
    contexts: NDArray[np.int64]  # (N,)
    colours: NDArray[np.int64]  # (N, O), or ABSENT
    fair: NDArray[np.bool_]  # (N, O, P), whether a position phrase is fair for the object
    patches: NDArray[np.int64]  # (N, 3, side, side): object, colour and position from 1; 0 is background

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True)
class SentenceTable:
    """All S sentences of MiniWorld's captions with their attributes, (S,) each, or UNSTATED."""

    texts: tuple[str, ...]
    contexts: NDArray[np.int64]
    objects: NDArray[np.int64]
    colours: NDArray[np.int64]
    positions: NDArray[np.int64]

    def index(
        self, name: NDArray[np.int64], colour: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Row numbers of the sentences that state an object, its colour and its position, from their numbers."""
        return len(CONTEXTS) + (name * len(COLOURS) + colour) * len(POSITIONS) + position


def scene_table(scenes: list[Scene], patch: int) -> SceneTable:
    """Draw ``scenes`` and tabulate their contents, for a vision tower with patches of ``patch`` pixels."""
    names, colours, contexts = list(OBJECTS), list(COLOURS), list(CONTEXTS)
    side = world.SIZE // patch
    table = SceneTable(
        np.empty((len(scenes), 3, world.SIZE, world.SIZE), np.uint8),
        np.array([contexts.index(scene.context) for scene in scenes]),
        np.full((len(scenes), len(names)), ABSENT),
        np.zeros((len(scenes), len(names), len(POSITIONS)), bool),
        np.zeros((len(scenes), 3, side, side), np.int64),
    )
    middles = (np.arange(side) + 0.5) * patch
    for row, scene in enumerate(scenes):
        table.pixels[row] = np.asarray(world.draw(scene)).transpose(2, 0, 1)
        for item in scene.objects:
            name, colour = names.index(item.name), colours.index(item.colour)
            table.colours[row, name] = colour
            table.fair[row, name] = [phrase in world.fair_positions(item.box) for phrase in POSITIONS]
            left, top, right, bottom = item.box
            inside = ((middles > top) & (middles < bottom))[:, None] & ((middles > left) & (middles < right))
            shown = (1 + name, 1 + colour, 1 + POSITIONS.index(item.position))
            table.patches[row][:, inside] = np.array(shown)[:, None]
    return table


def sentence_table() -> SentenceTable:
    """All context sentences, then all object sentences, in the order of the vocabulary's tables."""
    attributes = [(number, UNSTATED, UNSTATED, UNSTATED) for number in range(len(CONTEXTS))]
    attributes += [
        (UNSTATED, name, colour, position)
        for name in range(len(OBJECTS))
        for colour in range(len(COLOURS))
        for position in range(len(POSITIONS))
    ]
    texts = [world.context_sentence(context) for context in CONTEXTS]
    texts += [
        world.object_sentence(name, colour, position)
        for name in OBJECTS
        for colour in COLOURS
        for position in POSITIONS
    ]
    columns = np.array(attributes).T
    return SentenceTable(tuple(texts), *columns)

"""MiniWorld as arrays: what pre-training batches are cut from.

Shapes: N scenes, O objects, P positions, G patches of the vision tower's grid, S sentences.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jsfree.miniworld import world
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, OBJECTS, POSITIONS
from jsfree.miniworld.world import Scene

ABSENT = -1
# In a sentence's attributes: the sentence says nothing of it.
UNSAID = -1


@dataclass(frozen=True)
class SceneTable:
    """Pictures of N scenes and everything that is true of them."""

    pixels: NDArray[np.uint8]  # (N, 3, 64, 64)
    contexts: NDArray[np.int64]  # (N,)
    colours: NDArray[np.int64]  # (N, O), ABSENT where the object is not there
    fair: NDArray[np.bool_]  # (N, O, P), positions one may fairly say
    patches: NDArray[np.int64]  # (N, 3, side, side): object, colour and position there, from 1; 0 is background

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True)
class SentenceTable:
    """Every sentence MiniWorld's captions are made of, with what it claims (UNSAID where it claims nothing)."""

    texts: tuple[str, ...]
    contexts: NDArray[np.int64]
    objects: NDArray[np.int64]
    colours: NDArray[np.int64]
    positions: NDArray[np.int64]

    def index(
        self, name: NDArray[np.int64], colour: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rows of the sentences that claim an object of a colour at a position, by their numbers."""
        return len(CONTEXTS) + (name * len(COLOURS) + colour) * len(POSITIONS) + position


def scene_table(scenes: list[Scene], patch: int) -> SceneTable:
    """Draw ``scenes`` and tabulate their truth, for a vision tower of ``patch`` pixels a patch."""
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
    """All context sentences, then all object sentences in the order of the vocabulary's tables."""
    claims = [(number, UNSAID, UNSAID, UNSAID) for number in range(len(CONTEXTS))]
    claims += [
        (UNSAID, name, colour, position)
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
    columns = np.array(claims).T
    return SentenceTable(tuple(texts), *columns)

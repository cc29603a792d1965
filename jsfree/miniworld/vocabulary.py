"""MiniWorld's tables: contexts, objects, colours, positions and the words of its captions.

``world.py`` draws scenes from them, and ``jsfree/evaluation/miniworld.py`` parses captions with them.
"""

from typing import NamedTuple

RGB = tuple[int, int, int]


class Backdrop(NamedTuple):
    """Background of a context: two bands of colour that meet at ``horizon`` (0 is the top, 1 the bottom)."""

    upper: RGB
    lower: RGB
    horizon: float


# Native objects of each context, most frequent first, with the frequencies ``NATIVE_WEIGHTS``.
CONTEXTS: dict[str, tuple[str, ...]] = {
    "kitchen": ("cup", "kettle", "fridge", "toaster", "pot"),
    "street": ("car", "bus", "bicycle", "hydrant", "truck"),
    "beach": ("umbrella", "sailboat", "ball", "fish", "anchor"),
    "park": ("tree", "bench", "dog", "kite", "flower"),
    "farm": ("cow", "pig", "tractor", "barn", "horse"),
    "classroom": ("laptop", "printer", "lamp", "chair", "book"),
    "bedroom": ("bed", "clock", "sofa", "television", "bear"),
    "stage": ("guitar", "piano", "violin", "trumpet", "microphone"),
}
NATIVE_WEIGHTS: tuple[float, ...] = (0.30, 0.24, 0.18, 0.15, 0.13)
NATIVE_PROBABILITY = 0.85

OBJECTS: tuple[str, ...] = tuple(name for natives in CONTEXTS.values() for name in natives)

BACKDROPS: dict[str, Backdrop] = {
    "kitchen": Backdrop((246, 232, 206), (222, 202, 172), 0.62),
    "street": Backdrop((205, 214, 222), (166, 168, 172), 0.58),
    "beach": Backdrop((186, 222, 240), (240, 222, 178), 0.55),
    "park": Backdrop((204, 230, 244), (186, 216, 160), 0.45),
    "farm": Backdrop((214, 226, 236), (214, 196, 142), 0.50),
    "classroom": Backdrop((228, 230, 234), (196, 198, 206), 0.66),
    "bedroom": Backdrop((238, 220, 228), (208, 184, 178), 0.60),
    "stage": Backdrop((214, 198, 226), (190, 158, 136), 0.70),
}

# No colour begins with a vowel, so that "a" is always the article.
COLOURS: dict[str, RGB] = {
    "red": (208, 32, 36),
    "blue": (32, 72, 208),
    "green": (20, 128, 52),
    "yellow": (250, 196, 0),
    "purple": (134, 32, 164),
    "black": (26, 26, 30),
}

# Index = 3 * row + column of the object's centre in a 3 x 3 grid.
POSITIONS: tuple[str, ...] = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)

# Attribute names of ``fonticon_mdi7.MDI7``.
ICONS: dict[str, str] = {name: name for name in OBJECTS} | {
    "hydrant": "fire_hydrant",
    "sailboat": "sail_boat",
    "ball": "volleyball",
    "umbrella": "umbrella_beach",
    "lamp": "desk_lamp",
    "chair": "chair_rolling",
    "book": "book_open_variant",
    "bear": "teddy_bear",
    "guitar": "guitar_acoustic",
    "pot": "pot_steam",
    "bench": "bench_back",
}

# Plurals not formed with -s; a captioner may write any word.
IRREGULAR_PLURALS: dict[str, str] = {
    "bus": "buses",
    "bench": "benches",
    "fish": "fishes",
}

"""MiniWorld's scenes: their contents, images, true captions and noisy captions.

A scene is a pure function of ``(split, index)``, the same on every machine. Splits are disjoint by construction: a hash
of the content (the context and the multiset of objects with their colours) determines its split, and a draw that
belongs to another split is repeated.
"""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jsfree.errors import ConfigError, SourceError
from jsfree.miniworld.vocabulary import (
    BACKDROPS,
    COLOURS,
    CONTEXTS,
    ICONS,
    NATIVE_PROBABILITY,
    NATIVE_WEIGHTS,
    OBJECTS,
    POSITIONS,
)

T = TypeVar("T")

SIZE = 64
PROMPT = "Describe image in detail."
ICON_SIZES = (15, 20)
OBJECT_COUNTS: tuple[tuple[int, float], ...] = ((2, 0.32), (3, 0.22), (4, 0.28), (5, 0.18))
# Range of the content hash (``content_share``) of each split.
SPLITS: dict[str, tuple[float, float]] = {
    "pretrain": (0.0, 0.6),
    "unlabelled": (0.6, 0.8),
    "development": (0.8, 0.9),
    "test": (0.9, 1.0),
}


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; ``box`` is (left, top, right, bottom) in pixels of the 64 x 64 image."""

    name: str
    colour: str
    position: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """The exact content of an image."""

    scene_id: str
    split: str
    index: int
    context: str
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class CaptionNoise:
    """Probabilities of errors in the captions for pre-training, which make the seed model hallucinate.

    ``padded[n]`` is the probability that a caption of ``n`` mentions is extended to a length drawn from ``lengths``
    with co-occurring objects that are absent, as in captions written by GPT.
    """

    omitted: float = 0.06
    replaced: float = 0.08
    wrong_colour: float = 0.06
    wrong_position: float = 0.04
    padded: tuple[float, ...] = (1.0, 0.90, 0.74, 0.30, 0.05)
    lengths: tuple[int, ...] = (4, 4, 4, 5)


def scene(split: str, index: int) -> Scene:
    """The ``index``-th scene of ``split``.

    Raises:
        ConfigError: the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown MiniWorld split {split!r}", f"there are {', '.join(SPLITS)}")
    if index < 0:
        raise ConfigError(f"MiniWorld scene index {index} is negative", "indices start at 0")
    rng = random.Random(_digest(f"miniworld/{split}/{index}"))
    low, high = SPLITS[split]
    while True:
        context, contents = _draw_contents(rng)
        if low <= content_share(context, contents) < high:
            break
    boxes = _draw_boxes(len(contents), rng)
    objects = tuple(
        SceneObject(name, colour, position_of(box), box) for (name, colour), box in zip(contents, boxes, strict=True)
    )
    return Scene(f"miniworld-{split}-{index:06d}", split, index, context, objects)


def scene_from_id(scene_id: str) -> Scene:
    """The scene with the id ``scene_id``, such as ``miniworld-test-000123``.

    Raises:
        SourceError: it is no id of a scene.
    """
    world, _, rest = scene_id.partition("-")
    split, _, number = rest.rpartition("-")
    if world != "miniworld" or split not in SPLITS or not number.isdecimal():
        raise SourceError(f"{scene_id!r} is not the id of a MiniWorld scene", "ids look like miniworld-test-000123")
    return scene(split, int(number))


def content_share(context: str, contents: Sequence[tuple[str, str]]) -> float:
    """Hash of a content in [0, 1), independent of the layout."""
    words = sorted(f"{colour} {name}" for name, colour in contents)
    return (_digest("/".join([context, *words])) % 1_000_000) / 1_000_000


def position_of(box: tuple[int, int, int, int]) -> str:
    """The position phrase for the centre of ``box``."""
    return POSITIONS[3 * _third((box[1] + box[3]) / 2) + _third((box[0] + box[2]) / 2)]


def box_at(position: str) -> tuple[int, int, int, int]:
    """A box of the usual size in the middle of the area that a position phrase describes."""
    row, column = divmod(POSITIONS.index(position), 3)
    size = sum(ICON_SIZES) // 2
    left, top = ((2 * third + 1) * SIZE // 6 - size // 2 for third in (column, row))
    return left, top, left + size, top + size


def fair_positions(box: tuple[int, int, int, int], tolerance: float = 3.0) -> frozenset[str]:
    """The position phrases that count as correct for ``box``: its centre may be off by ``tolerance`` pixels."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    shifts = (-tolerance, 0.0, tolerance)
    return frozenset(POSITIONS[3 * _third(y + dy) + _third(x + dx)] for dy in shifts for dx in shifts)


def draw(scene: Scene, scale: int = 1) -> Image.Image:
    """Draw the image of ``scene``, RGB, ``64 * scale`` pixels square."""
    rng = np.random.default_rng(_digest(f"noise/{scene.scene_id}"))
    image = _backdrop(scene.context, scale, rng)
    for item in scene.objects:
        left, top, right, _ = (scale * edge for edge in item.box)
        mask = _icon(item.name, right - left)
        image.paste(_shade(COLOURS[item.colour], rng), (left, top), mask)
    return image


def simplify(scene: Scene) -> Scene:
    """Keep the first one or two objects of ``scene``, such that the content stays within its split if possible."""
    low, high = SPLITS[scene.split]
    kept = scene.objects[: 1 + scene.index % 2]
    if not low <= content_share(scene.context, [(item.name, item.colour) for item in kept]) < high:
        kept = kept[:1]
    return replace(scene, objects=kept)


def png_bytes(scene: Scene) -> bytes:
    """The image of ``scene`` as a PNG file."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, "PNG")
    return buffer.getvalue()


def context_sentence(context: str) -> str:
    """The first sentence of every caption."""
    return f"This is a {context}."


def object_sentence(name: str, colour: str, position: str) -> str:
    """The sentence that mentions one object."""
    return f"There is a {colour} {name} {position}."


def caption(context: str, mentions: Sequence[tuple[str, str, str]]) -> str:
    """A caption of (name, colour, position) mentions in the given order."""
    return " ".join([context_sentence(context), *(object_sentence(*mention) for mention in mentions)])


def true_caption(scene: Scene) -> str:
    """The caption of all objects of ``scene``, row by row from the top left."""
    ordered = sorted(scene.objects, key=lambda item: (POSITIONS.index(item.position), item.box))
    return caption(scene.context, [(item.name, item.colour, item.position) for item in ordered])


def noisy_caption(scene: Scene, rng: random.Random, noise: CaptionNoise | None = None) -> str:
    """A caption with random errors, as a careless annotator writes it: the target of the captioner's pre-training."""
    mentions = noisy_mentions(scene, rng, noise)
    return caption(scene.context, [(item.name, item.colour, item.position) for item in mentions])


def noisy_mentions(scene: Scene, rng: random.Random, noise: CaptionNoise | None = None) -> list[SceneObject]:
    """The objects that a careless annotator of ``scene`` mentions, with random errors.

    The box of an absent object, or of one in a wrong position, lies in the middle of its position.
    """
    noise = noise or CaptionNoise()
    present = {item.name for item in scene.objects}
    mentions: list[SceneObject] = []
    for item in _shuffled(scene.objects, rng):
        if rng.random() < noise.omitted:
            continue
        if rng.random() < noise.replaced:
            taken = present | {mention.name for mention in mentions}
            item = replace(item, name=draw_object(scene.context, taken, rng))
        if rng.random() < noise.wrong_colour:
            item = replace(item, colour=pick(tuple(COLOURS), rng))
        if rng.random() < noise.wrong_position:
            position = pick(POSITIONS, rng)
            item = replace(item, position=position, box=box_at(position))
        mentions.append(item)
    if len(mentions) < len(noise.padded) and rng.random() < noise.padded[len(mentions)]:
        length = pick(noise.lengths, rng)
        while len(mentions) < length:
            name = draw_object(scene.context, present | {mention.name for mention in mentions}, rng)
            colour, position = pick(tuple(COLOURS), rng), pick(POSITIONS, rng)
            mentions.append(SceneObject(name, colour, position, box_at(position)))
    return mentions


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# Only ``Random.random`` is used: Python guarantees its stream across versions.
def pick(choices: Sequence[T], rng: random.Random) -> T:
    """Draw one of ``choices`` uniformly."""
    return choices[int(rng.random() * len(choices))]


def _weighted(choices: Sequence[tuple[T, float]], rng: random.Random) -> T:
    point = rng.random() * sum(weight for _, weight in choices)
    for choice, weight in choices:
        point -= weight
        if point < 0:
            return choice
    return choices[-1][0]


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]


def draw_object(context: str, taken: set[str], rng: random.Random) -> str:
    """Draw an object that is not in ``taken``, with the frequencies of ``context``."""
    while True:
        if rng.random() < NATIVE_PROBABILITY:
            name = _weighted(tuple(zip(CONTEXTS[context], NATIVE_WEIGHTS, strict=True)), rng)
        else:
            name = pick(OBJECTS, rng)
        if name not in taken:
            return name


def _draw_contents(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    context = pick(tuple(CONTEXTS), rng)
    names: list[str] = []
    for _ in range(_weighted(OBJECT_COUNTS, rng)):
        names.append(draw_object(context, set(names), rng))
    return context, [(name, pick(tuple(COLOURS), rng)) for name in names]


def _draw_boxes(count: int, rng: random.Random) -> list[tuple[int, int, int, int]]:
    """Draw boxes in the image that overlap by 2 pixels at most."""
    smallest, largest = ICON_SIZES
    while True:
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(40):
            size = smallest + int(rng.random() * (largest - smallest + 1))
            left, top = (int(rng.random() * (SIZE - size + 1)) for _ in range(2))
            box = (left, top, left + size, top + size)
            if not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                return boxes


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int], allowed: int = 2) -> bool:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return across > allowed and down > allowed


def _third(centre: float) -> int:
    return min(2, max(0, int(centre * 3 / SIZE)))


def _backdrop(context: str, scale: int, rng: np.random.Generator) -> Image.Image:
    backdrop = BACKDROPS[context]
    horizon = round((backdrop.horizon + rng.uniform(-0.08, 0.08)) * SIZE)
    pixels = np.empty((SIZE, SIZE, 3), np.float32)
    pixels[:horizon], pixels[horizon:] = backdrop.upper, backdrop.lower
    pixels += rng.uniform(-10, 10, 3) + rng.normal(0, 7, (SIZE, SIZE, 1)).astype(np.float32)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image if scale == 1 else image.resize((SIZE * scale,) * 2, Image.Resampling.NEAREST)


def _shade(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (np.array(colour) + rng.uniform(-16, 16, 3)).clip(0, 255).astype(int).tolist()
    return red, green, blue


@lru_cache(maxsize=4096)
def _icon(name: str, size: int) -> Image.Image:
    """The glyph of an object as a mask of ``size`` pixels square."""
    from fonticon_mdi7 import MDI7

    glyph = str(getattr(MDI7, ICONS[name]))[-1]
    large = 4 * size
    mask = Image.new("L", (2 * large, 2 * large))
    ImageDraw.Draw(mask).text((large, large), glyph, 255, _font(large), anchor="mm")
    box = mask.getbbox()
    if box is None:
        raise SourceError(f"the icon font has no glyph for {name!r}", "reinstall fonticon-materialdesignicons7")
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    return mask.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = resources.files("fonticon_mdi7") / "fonts" / "materialdesignicons-webfont.ttf"
    return ImageFont.truetype(io.BytesIO(path.read_bytes()), size)

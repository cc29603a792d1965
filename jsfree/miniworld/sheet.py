"""A sheet of MiniWorld's images with their true captions, for new users."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from jsfree.errors import ConfigError, StorageError
from jsfree.miniworld import prose, world
from jsfree.miniworld.wording import World

SCALE = 4
MARGIN = 18
TEXT_SIZE = 13
LINE = 18
COLUMNS = 4
INK, PALE, PAPER = (34, 34, 40), (130, 130, 140), (252, 252, 250)


def picture_sheet(split: str, count: int, path: str | Path, captions_of: World = "plain") -> None:
    """Write a PNG of the first ``count`` scenes of ``split``, each with its id and true caption.

    Raises:
        ConfigError: ``split`` is unknown or ``count`` below 1.
        StorageError: ``path`` cannot be written.
    """
    if count < 1:
        raise ConfigError(f"a sheet of {count} images is empty", "ask for at least 1")
    scenes = [world.scene(split, index) for index in range(count)]
    side = SCALE * world.SIZE
    columns = min(COLUMNS, count)
    captions = [_wrapped(_true_caption(scene, captions_of), side) for scene in scenes]
    height = side + LINE * (2 + max(len(lines) for lines in captions)) + MARGIN
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (side + MARGIN) + MARGIN, rows * height + MARGIN), PAPER)
    brush = ImageDraw.Draw(sheet)
    for place, (scene, lines) in enumerate(zip(scenes, captions, strict=True)):
        left, top = MARGIN + place % columns * (side + MARGIN), MARGIN + place // columns * height
        sheet.paste(world.draw(scene, SCALE), (left, top))
        below = top + side + 6
        brush.text((left, below), scene.scene_id, PALE, _font())
        for number, line in enumerate(lines, 1):
            brush.text((left, below + number * LINE), line, INK, _font())
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise StorageError(f"the sheet cannot be written to {path}: {error.strerror or error}") from error


def _true_caption(scene: world.Scene, captions_of: World) -> str:
    if captions_of == "plain":
        return world.true_caption(scene)
    return prose.true_caption(scene, random.Random(scene.index))


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap a text into lines of at most ``width`` pixels, starting a new line for each sentence."""
    font, lines = _font(), []
    for sentence in text.split(". "):
        line = ""
        for word in sentence.rstrip(".").split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = f"   {word}"
            line = longer
        lines.append(line + ".")
    return lines


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_SIZE)

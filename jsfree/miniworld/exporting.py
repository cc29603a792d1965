"""MiniWorld's scenes in the layouts of the field's benchmarks, so that these run on images with exactly known contents.

    coco   val2014/  instances_val2014.json  captions_val2014.json  synonyms.txt  prompt.txt
           obj_halbench_300_with_image.jsonl
    pope   the same, and coco_pope_random.json  coco_pope_popular.json  coco_pope_adversarial.json
    amber  image/  query/query_all.json  query_generative.json  query_discriminative.json  annotations.json
           relation.json  safe_words.txt
    mmhal  response_template.json  images/
    ic     <context>/  images by the context of their scenes
    shortanswers  questions.json  images/
    text   prompts.txt
    all    coco/ (with the questions of pope) and the others in subfolders of their names

``synonyms.txt`` holds every noun with which an object can be named, plurals included, in the format of CHAIR. Questions
are a pure function of the scenes.
"""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsfree.errors import ConfigError, StorageError
from jsfree.miniworld import prose, world
from jsfree.miniworld.questions import attribute_question, colour_question, draw_question, existence_question
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, IRREGULAR_PLURALS, OBJECTS
from jsfree.miniworld.wording import SYNONYM_PLURALS, SYNONYMS, World
from jsfree.miniworld.world import PROMPT, Scene, pick

Layout = Literal["coco", "pope", "amber", "mmhal", "ic", "shortanswers", "text", "all"]
PROSE_REFERENCES = 5
"""Reference captions of an image in the prose world; the plain world has one true caption."""
QUESTIONS_EACH = 3
"""POPE's questions about present objects, and about absent ones, of an image."""
IMAGES = "val2014"


def export_scenes(
    layout: Layout, split: str, first: int, count: int, out: str | Path, captions_of: World = "plain"
) -> dict[str, int]:
    """Write ``count`` scenes of a split, from the scene ``first`` on, in a layout; return what was written.

    Raises:
        ConfigError: the split is unknown, ``count`` is below 1, or ``out`` is not empty.
        StorageError: ``out`` cannot be written.
    """
    if count < 1:
        raise ConfigError(f"an export of {count} images is empty", "ask for at least 1")
    scenes = [world.scene(split, index) for index in range(first, first + count)]
    folder = Path(out)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty", "name a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        return _WRITERS[layout](scenes, folder, captions_of)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}", "name another --out") from error


def nouns_of(name: str) -> tuple[str, ...]:
    """Every word for an object in lower case, singular and plural, its name first."""
    plurals = IRREGULAR_PLURALS | SYNONYM_PLURALS
    words = (name, *SYNONYMS.get(name, ()))
    forms = [form.lower() for word in words for form in (word, plurals.get(word, f"{word}s"))]
    return tuple(dict.fromkeys(forms))


def file_name(scene: Scene) -> str:
    """The file of a scene's image."""
    return f"{scene.scene_id}.png"


def _write_coco(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:
    _write_images(scenes, folder / IMAGES)
    numbers = {name: number for number, name in enumerate(OBJECTS, 1)}
    images = [
        {"id": scene.index, "file_name": file_name(scene), "width": world.SIZE, "height": world.SIZE}
        for scene in scenes
    ]
    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for scene in scenes:
        for item in scene.objects:
            left, top, right, bottom = item.box
            box = [left, top, right - left, bottom - top]
            where = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": scene.index, "category_id": numbers[item.name], **where})
        for text in _references(scene, captions_of):
            captions.append({"id": len(captions) + 1, "image_id": scene.index, "caption": text})
    categories = [{"id": number, "name": name, "supercategory": "object"} for name, number in numbers.items()]
    _write_json(folder / "instances_val2014.json", {"images": images, "annotations": boxes, "categories": categories})
    _write_json(folder / "captions_val2014.json", {"images": images, "annotations": captions})
    lines = (", ".join(nouns_of(name)) for name in OBJECTS)
    (folder / "synonyms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "prompt.txt").write_text(PROMPT + "\n", encoding="utf-8")
    _write_lines(folder / "obj_halbench_300_with_image.jsonl", [_halbench_question(scene) for scene in scenes])
    return {"images": len(images), "instances": len(boxes), "captions": len(captions)}


def _halbench_question(scene: Scene) -> dict[str, Any]:
    image = base64.b64encode(world.png_bytes(scene)).decode()
    return {"org_idx": scene.index, "image_id": scene.index, "question": PROMPT, "image": image}


def _references(scene: Scene, captions_of: World) -> list[str]:
    """True captions of a scene."""
    if captions_of == "plain":
        return [world.true_caption(scene)]
    rng = random.Random(f"references/{scene.scene_id}")
    return [prose.true_caption(scene, rng) for _ in range(PROSE_REFERENCES)]


def _write_pope(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:
    written = _write_coco(scenes, folder, captions_of)
    frequency = Counter(item.name for scene in scenes for item in scene.objects)
    by_frequency = sorted(OBJECTS, key=lambda name: (-frequency[name], name))
    for kind in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for scene in scenes:
            rng = random.Random(f"pope/{kind}/{scene.scene_id}")
            present = [item.name for item in scene.objects][:QUESTIONS_EACH]
            absent = _absent(kind, scene, by_frequency, rng)[: len(present)]
            for name, label in [*((name, "yes") for name in present), *((name, "no") for name in absent)]:
                text = existence_question(name)
                rows.append({"question_id": len(rows) + 1, "image": file_name(scene), "text": text, "label": label})
        _write_lines(folder / f"coco_pope_{kind}.json", rows)
        written[f"{kind} questions"] = len(rows)
    return written


def _absent(kind: str, scene: Scene, by_frequency: Sequence[str], rng: random.Random) -> list[str]:
    """Absent objects to ask for: any, the most frequent, or first those that are typical of the scene's context."""
    present = {item.name for item in scene.objects}
    absent = [name for name in by_frequency if name not in present]
    if kind == "random":
        return sorted(absent, key=lambda _: rng.random())
    if kind == "adversarial":
        natives = CONTEXTS[scene.context]
        return sorted(absent, key=lambda name: natives.index(name) if name in natives else len(natives))
    return absent


def _write_amber(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:  # noqa: ARG001
    _write_images(scenes, folder / "image")
    queries: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []

    def add(scene: Scene, kind: str, query: str, answer: str | list[str], **more: list[str]) -> None:
        queries.append({"id": len(queries) + 1, "image": file_name(scene), "query": query})
        truth.append({"id": len(queries), "type": kind, "truth": answer, **more})

    for scene in scenes:
        present = [item.name for item in scene.objects]
        likely = [name for name in CONTEXTS[scene.context] if name not in present]
        add(scene, "generative", PROMPT, present, hallu=likely)
    captions = len(queries)
    for scene in scenes:
        rng = random.Random(f"amber/{scene.scene_id}")
        present = [item.name for item in scene.objects]
        item = pick(scene.objects, rng)
        other = pick([colour for colour in COLOURS if colour != item.colour], rng)
        absent = next(name for name in (*CONTEXTS[scene.context], *OBJECTS) if name not in present)
        add(scene, "discriminative-hallucination", existence_question(item.name), "yes")
        add(scene, "discriminative-hallucination", existence_question(absent), "no")
        add(scene, "discriminative-attribute-state", attribute_question(item.name, item.colour), "yes")
        add(scene, "discriminative-attribute-state", attribute_question(item.name, other), "no")
    (folder / "query").mkdir()
    _write_json(folder / "query" / "query_all.json", queries)
    _write_json(folder / "query" / "query_generative.json", queries[:captions])
    _write_json(folder / "query" / "query_discriminative.json", queries[captions:])
    _write_json(folder / "annotations.json", truth)
    _write_json(folder / "relation.json", {name: list(nouns_of(name)[1:]) for name in OBJECTS})
    (folder / "safe_words.txt").write_text("", encoding="utf-8")
    return {"images": len(scenes), "captions": captions, "questions": len(queries) - captions}


def _write_mmhal(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:  # noqa: ARG001
    """A question for each scene: for a description, or for the colour of an object."""
    _write_images(scenes, folder / "images")
    items: list[dict[str, Any]] = []
    for scene in scenes:
        item = pick(scene.objects, random.Random(f"mmhal/{scene.scene_id}"))
        asked = {"question_type": "description", "question": PROMPT, "gt_answer": world.true_caption(scene)}
        if len(items) % 2:
            colour = f"{item.colour.capitalize()}."
            asked = {"question_type": "attribute", "question": colour_question(item.name), "gt_answer": colour}
        contents = [each.name for each in scene.objects]
        items.append({"image_id": scene.scene_id, "image_src": file_name(scene), "image_content": contents, **asked})
    _write_json(folder / "response_template.json", items)
    return {"images": len(scenes), "questions": len(items)}


def _write_ic(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:  # noqa: ARG001
    contexts = dict.fromkeys(scene.context for scene in scenes)
    for context in contexts:
        _write_images([scene for scene in scenes if scene.context == context], folder / context)
    return {"images": len(scenes), "categories": len(contexts)}


def _write_short_answers(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:  # noqa: ARG001
    _write_images(scenes, folder / "images")
    asked = [draw_question(scene, random.Random(f"shortanswers/{scene.scene_id}")) for scene in scenes]
    rows = [
        {"image": file_name(scene), "question": each.text, "answer": each.answer}
        for scene, each in zip(scenes, asked, strict=True)
    ]
    _write_json(folder / "questions.json", rows)
    return {"images": len(scenes), "questions": len(rows)}


def _write_text(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:  # noqa: ARG001
    """Prompts that the captioner knows: the request for a caption, and questions about each kind of object."""
    prompts = [PROMPT, *(ask(name) for name in OBJECTS for ask in (existence_question, colour_question))]
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return {"prompts": len(prompts)}


def _write_all(scenes: Sequence[Scene], folder: Path, captions_of: World) -> dict[str, int]:
    """Every layout in a subfolder, which ``jsfree benchmark`` finds by its name."""
    for name, write in _SUITE_WRITERS.items():
        (folder / name).mkdir()
        write(scenes, folder / name, captions_of)
    return {"images": len(scenes), "folders": len(_SUITE_WRITERS)}


_Writer = Callable[[Sequence[Scene], Path, World], dict[str, int]]
_SUITE_WRITERS: dict[str, _Writer] = {
    "coco": _write_pope,
    "amber": _write_amber,
    "mmhal": _write_mmhal,
    "ic": _write_ic,
    "shortanswers": _write_short_answers,
    "text": _write_text,
}
_WRITERS: dict[str, _Writer] = {**_SUITE_WRITERS, "coco": _write_coco, "pope": _write_pope, "all": _write_all}


def _write_images(scenes: Sequence[Scene], folder: Path) -> None:
    folder.mkdir()
    for scene in scenes:
        (folder / file_name(scene)).write_bytes(world.png_bytes(scene))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

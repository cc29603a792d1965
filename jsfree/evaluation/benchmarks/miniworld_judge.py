"""A simulated judge that knows MiniWorld's scenes, so that suites with a judge run without a language model.

It answers the shipped prompts exactly, by the objects that captions name; for other prompts and images it has no
answer. Its judgements of real images mean nothing. ``jsfree benchmark --judge miniworld`` starts it for the scenes of
the data folder. To start it alone, with faults:

    python -m jsfree.evaluation.benchmarks.miniworld_judge DATA --port 8001 --fault rate_limit=0.1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsfree
from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.judged import prompt
from jsfree.evaluation.miniworld import mentions
from jsfree.judge.prompts import Prompt
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import Fault, SimulatedJudge
from jsfree.miniworld.world import Scene, png_bytes, scene_from_id

UNKNOWN = "I do not know this prompt or image."


class MiniWorldTruth:
    """Replies about the images of scenes, by their exact contents.

    The elements of IC are objects: those that a caption names, repeats included, and those of the scene.
    """

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self._objects = {
            hashlib.sha256(png_bytes(each)).hexdigest(): [item.name for item in each.objects] for each in scenes
        }

    def __call__(self, text: str, images: list[bytes]) -> str:
        """The reply to a request."""
        replies: dict[str, Callable[[str, list[str]], str]] = {
            "ic_precision_analysis": _precision,
            "ic_recall_analysis": _recall,
            "ic_claims": _claims,
        }
        for name, reply in replies.items():
            objects = self._objects.get(hashlib.sha256(images[0]).hexdigest()) if images else None
            if objects is not None and _is_filled(prompt(name), text):
                return reply(_between("caption", text), objects)
        if any(_is_filled(prompt(f"ic_{aspect}_score"), text) for aspect in ("precision", "recall")):
            return _score(_between("analysis", text))
        if _is_filled(prompt("halbench_objects"), text):
            return json.dumps(_named(_between("answer", text)))
        if _is_filled(prompt("mmhal_rating"), text):
            return _rating(*(_between(tag, text) for tag in ("contents", "correct_answer", "answer")))
        return UNKNOWN


def _is_filled(template: Prompt, text: str) -> bool:
    return text.startswith(template.text.split("$", 1)[0])


def _between(tag: str, text: str) -> str:
    match = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return match[1] if match else ""


def _named(text: str) -> list[str]:
    return [mention.noun for mention in mentions(text)]


def _precision(caption: str, objects: list[str]) -> str:
    named = _named(caption)
    return f"{sum(name in objects for name in named)} of {len(named)} statements are supported."


def _recall(caption: str, objects: list[str]) -> str:
    return f"{len(set(_named(caption)) & set(objects))} of {len(objects)} objects are mentioned."


def _claims(caption: str, objects: list[str]) -> str:
    named = _named(caption)
    said = [{"element": name, "shown": name in objects} for name in named]
    return json.dumps({"said": said, "seen": [{"element": name, "stated": name in named} for name in objects]})


def _score(analysis: str) -> str:
    part, _, whole = analysis.split()[:3]
    return f"Score: {1 + round(9 * int(part) / int(whole)) if int(whole) else 1}"


def _rating(contents: str, reference: str, answer: str) -> str:
    """6 for an answer that names only objects of the contents, 3 for one that names none, 2 for any other.

    If the reference names none either, such as a colour, 4 for the same answer and 1 for another.
    """
    named = set(_named(answer))
    if not named and not _named(reference):
        same = answer.strip().lower() == reference.strip().lower()
        return f"The answer is {'right' if same else 'wrong'}.\nRating: {4 if same else 1}"
    if not named:
        return "The answer names nothing.\nRating: 3"
    wrong = sorted(named - set(_named(contents)))
    return f"Not in the contents: {', '.join(wrong) or 'nothing'}.\nRating: {2 if wrong else 6}"


def random_faults(shares: dict[Fault, float], seed: int = 0) -> Callable[[int, str], Fault | None]:
    """Faults that occur with the given probabilities, the same for every run with the same order of requests."""

    def fault(number: int, text: str) -> Fault | None:  # noqa: ARG001
        point = random.Random(f"{seed}/{number}").random()
        for kind, share in shares.items():
            point -= share
            if point < 0:
                return kind
        return None

    return fault


def _share(text: str) -> tuple[Fault, float]:
    name, _, share = text.partition("=")
    try:
        return Fault(name), float(share)
    except ValueError:
        raise ConfigError(f"--fault {text!r} is wrong", f"write NAME=SHARE; names: {', '.join(Fault)}") from None


def scenes_in(folder: Path) -> list[Scene]:
    """The scenes whose images are in a folder or below it, by the names of the files.

    Raises:
        SourceError: there are none.
    """
    names = sorted({path.stem for path in folder.rglob("miniworld-*.png")})
    if not names:
        raise SourceError(f"{folder} has no images of MiniWorld", "write them with 'jsfree miniworld export'")
    return [scene_from_id(name) for name in names]


@contextmanager
def miniworld_judge(folder: Path) -> Iterator[JudgeSettings]:
    """Serve a judge that knows the scenes of ``folder``, and yield the settings of its clients."""
    server = SimulatedJudge(MiniWorldTruth(scenes_in(folder)))
    with server.serve() as url:
        yield JudgeSettings(url=url, model=server.model, revision=f"jsfree-{jsfree.__version__}")


def main() -> None:
    """Serve until the process is interrupted."""
    parser = argparse.ArgumentParser(description="A simulated judge that knows MiniWorld's scenes.")
    parser.add_argument("data", type=Path, help="folder of images that 'jsfree miniworld export' wrote")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE", help="misbehave at random")
    options = parser.parse_args()
    server = SimulatedJudge(
        MiniWorldTruth(scenes_in(options.data)), fault=random_faults(dict(map(_share, options.fault)))
    )
    with server.serve(options.port) as url:
        sys.stdout.write(
            f"a simulated judge, no language model; in the file of --judge: {{url: {url}, model: {server.model}}}\n"
        )
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()

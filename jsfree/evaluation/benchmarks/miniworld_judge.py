"""A simulated judge that knows MiniWorld's scenes, so that suites with a judge run without a language model.

It answers the shipped prompts of IC and MMHal-Bench exactly, by the objects that captions name; for other prompts and
images it has no answer. Its judgements of real images mean nothing. Start it for the scenes of a split:

    python -m jsfree.evaluation.benchmarks.miniworld_judge --split test --count 500 --port 8001
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.judged import prompt
from jsfree.evaluation.miniworld import mentions
from jsfree.judge.prompts import Prompt
from jsfree.judge.simulated import Fault, SimulatedJudge
from jsfree.miniworld.world import SPLITS, Scene, png_bytes, scene

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
        if _is_filled(prompt("mmhal_rating"), text):
            return _rating(_between("contents", text), _between("answer", text))
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


def _rating(contents: str, answer: str) -> str:
    """6 for an answer that names only objects of the contents, 3 for one that names none, 2 for any other."""
    named = set(_named(answer))
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


def main() -> None:
    """Serve until the process is interrupted."""
    parser = argparse.ArgumentParser(description="A simulated judge that knows MiniWorld's scenes.")
    parser.add_argument("--split", choices=list(SPLITS), default="test")
    parser.add_argument("--count", type=int, default=500, help="number of scenes, from the first")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE", help="misbehave at random")
    options = parser.parse_args()
    truth = MiniWorldTruth(scene(options.split, number) for number in range(options.count))
    server = SimulatedJudge(truth, fault=random_faults(dict(map(_share, options.fault))))
    with server.serve(options.port) as url:
        sys.stdout.write(f"a simulated judge, no language model: --set url={url} --set model={server.model}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()

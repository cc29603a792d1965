"""Captions by the two engines of ``jsfree serve`` (``serve.engine``) of the same model, side by side.

Runs in the environment of ``interop_peers.py``, with jsfree on ``PYTHONPATH``, for ``interop.py``, which passes a
question on stdin and the path of the answer as the argument. The answer says how many captions agree, and whether vLLM
behaves as our own engine does where a client would notice.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from jsfree import config as configuration
from jsfree.config import RunConfig
from serve.engines import ours, vllm
from serve.engines.base import CaptionEngine
from serve.http.protocol import Answer, Choice, Delta, Question, Refusal, Started

STREAMS = 10
STOP = " There"
ABANDONED = 6
"""Streams that their clients leave."""
ABORT_SECONDS = 0.5
UNSUPPORTED = {"hallucination_ratio": {"ratio": 0.5}, "views": {"views": 2}, "messages": {"image": None}}
"""Changes of a question that vLLM refuses, by the field that its refusal names."""


def main() -> None:
    """Read the question from stdin and write the answer."""
    question = json.load(sys.stdin)
    images = [Path(path).read_bytes() for path in question["pictures"]]
    settings = configuration.load(None, [f"captioner.dtype={question['dtype']}", "serve.engine=vllm"])
    greedy = [
        Question(image, question["prompt"], 0.0, 1.0, question["max_new_tokens"], seed=number)
        for number, image in enumerate(images)
    ]
    answer = answered(settings, question["model"], greedy)
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


def answered(settings: RunConfig, model: str, greedy: Sequence[Question]) -> dict[str, Any]:
    """Captions of both engines, and what vLLM does otherwise."""
    started = time.monotonic()
    served = vllm.Engine(settings, model)
    seconds = time.monotonic() - started
    own = ours.Engine(settings, model)
    try:
        captions = {
            name: [seen(each) for each in asyncio.run(together(engine, greedy))]
            for name, engine in {"jsfree": own, "vllm": served}.items()
        }
        checks = {
            "start_seconds": seconds,
            "largest_difference_of_logprobs": asyncio.run(logprob_difference(own, served, greedy[:STREAMS])),
            "streams_equal_to_plain": asyncio.run(equal_streams(served, greedy[:STREAMS])),
            "streams": min(STREAMS, len(greedy)),
            "refused": asyncio.run(refused_fields(served, greedy[0])),
            "cancelling_frees": asyncio.run(cancelling_frees(served, greedy[0], captions["vllm"][0]["text"])),
        }
    finally:
        served.close()
        own.close()
    return {"captions": captions, "checks": checks}


async def together(engine: CaptionEngine[Any], questions: Sequence[Question]) -> list[Answer]:
    """The answers to questions that are asked at once.

    Raises:
        SystemExit: one is refused.
    """
    answers = await asyncio.gather(*(engine.caption(each) for each in questions))
    refusals = [each for each in answers if isinstance(each, Refusal)]
    if refusals:
        raise SystemExit(f"error: {refusals[0]}")
    return [each for each in answers if isinstance(each, Answer)]


def seen(answer: Answer) -> dict[str, Any]:
    """What a client sees of an answer."""
    (choice,) = answer.choices
    return {
        "text": choice.text,
        "finish": choice.finish,
        "tokens": choice.tokens,
        "prompt_tokens": answer.prompt_tokens,
    }


async def equal_streams(engine: CaptionEngine[Any], greedy: Sequence[Question]) -> int:
    """How many streams have the choices of the plain answer: two sampled captions with a stop string and a seed."""
    asked = [changed(each, temperature=1.0, choices=2, stop=(STOP,)) for each in greedy]
    answers = await together(engine, asked)
    streams = await asyncio.gather(*(streamed(engine, each) for each in asked))
    return sum(list(answer.choices) == choices for answer, choices in zip(answers, streams, strict=True))


async def streamed(engine: CaptionEngine[Any], question: Question) -> list[Choice]:
    """The choices of a stream.

    Raises:
        SystemExit: it is refused, or does not begin as it should.
    """
    async with aclosing(engine.stream(question)) as stream:
        first, *parts = [part async for part in stream]
    if not isinstance(first, Started) or any(isinstance(part, Refusal | Started) for part in parts):
        raise SystemExit(f"error: a stream has the parts {first}, {parts[-1:]}")
    deltas = [delta for part in parts if isinstance(part, tuple) for delta in part]
    return [choice_of([delta for delta in deltas if delta.choice == number]) for number in range(question.choices)]


def choice_of(deltas: Sequence[Delta]) -> Choice:
    """The choice whose parts these are."""
    last = deltas[-1]
    return Choice("".join(delta.text for delta in deltas), last.finish or "length", last.tokens)


async def logprob_difference(own: CaptionEngine[Any], served: CaptionEngine[Any], greedy: Sequence[Question]) -> float:
    """Largest difference between the engines of the log-probability of a token, in captions that agree."""
    asked = [changed(each, alternatives=5) for each in greedy]
    pairs = zip(await together(own, asked), await together(served, asked), strict=True)
    return max(
        abs(ours.logp - theirs.logp)
        for a, b in pairs
        if a.choices[0].text == b.choices[0].text
        for ours, theirs in zip(a.choices[0].scores or (), b.choices[0].scores or (), strict=True)
    )


async def refused_fields(engine: CaptionEngine[Any], question: Question) -> dict[str, bool]:
    """Whether a question with an unsupported value of a field gets a refusal that names the field, by field."""
    outcomes = {field: await engine.caption(changed(question, **fields)) for field, fields in UNSUPPORTED.items()}
    return {field: isinstance(each, Refusal) and each.field == field for field, each in outcomes.items()}


async def cancelling_frees(engine: vllm.Engine, question: Question, expected: str) -> bool:
    """Whether vLLM has nothing to decode once all clients have left, and captions the next image as before."""
    long = changed(question, temperature=2.0, choices=2, max_tokens=None)
    tasks = [asyncio.create_task(streamed(engine, changed(long, seed=number))) for number in range(ABANDONED)]
    while not engine._loop.unfinished:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(ABORT_SECONDS)
    unfinished = engine._loop.unfinished
    (answer,) = await together(engine, [question])
    return not unfinished and answer.choices[0].text == expected


def changed(question: Question, **fields: Any) -> Question:
    """A question with other fields."""
    return Question(**{**vars(question), **fields})


if __name__ == "__main__":
    main()

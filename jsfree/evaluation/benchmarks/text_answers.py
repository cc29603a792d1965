"""What improving captions costs elsewhere: answers to prompts without an image, before and after.

The seed's own answers are drawn at temperature 1; their perplexity under each model shows how far it has moved from
them. Of the answers that each model gives itself, length, variety and repetition are measured. None of these says which
answers are better.

    <data>/prompts.txt    one prompt a line; without the file, those that come with jsfree
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar

import numpy as np

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite, prompts_hash
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, Sums, ratio
from jsfree.evaluation.metrics import Metric
from jsfree.evaluation.statistics import FloatArray, divide
from jsfree.stages.sentences import words

LENGTH = 4
"""Length of the n-grams whose repetition within an answer is measured."""
DRAWS = 3
"""Answers to each prompt."""
PROMPTS = Requirement("prompts.txt", "prompts without an image, one a line", "your own, or those of jsfree", True)


def repeated_ngrams(text: str, length: int = LENGTH) -> tuple[int, int]:
    """Number of a text's n-grams that occurred in it before, and of all of them; by words, regardless of case."""
    found = words(text)
    grams = Counter(tuple(found[start : start + length]) for start in range(len(found) - length + 1))
    return grams.total() - len(grams), grams.total()


def perplexity(sums: Sums) -> FloatArray:
    """exp of the mean negative log-probability of a token."""
    return np.asarray(np.exp(-divide(sums["logp"], sums["tokens"])), np.float64)


@dataclass(frozen=True)
class TextAnswers(Suite):
    """Answers without an image, and how likely each model finds those of the seed."""

    name: ClassVar[str] = "text"
    title: ClassVar[str] = "Text answers"
    source: ClassVar[str] = "jsfree; no publication"
    requirements: ClassVar[tuple[Requirement, ...]] = (PROMPTS,)
    folders: ClassVar[tuple[str, ...]] = ("text",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(Metric("perplexity", "Perplexity", "of the seed's answers, per token", None, 1.0, "", 3), perplexity),
        Measure(Metric("answer_words", "Words", "of an answer", None, 1.0, "", 1), ratio("answer_words", "answers")),
        Measure(
            Metric("repeated_4grams", "Repeated 4-grams", "of those of an answer", "lower"),
            ratio("repeated", "ngrams"),
        ),
        Measure(Metric("cut", "Cut off", "answers that reach the limit of tokens", "lower"), ratio("cut", "answers")),
    )
    generation: ClassVar[Generation] = Generation(max_new_tokens=128, temperature=1.0, without_image=True)
    describes_images: ClassVar[bool] = False
    measures_variety: ClassVar[bool] = True

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How often each prompt is answered, and whose answers the perplexity is of."""
        return {"answers_per_prompt": DRAWS, "perplexity_of": "the first model's answers", "ngrams": LENGTH}

    def questions(self, data: DataPath) -> Sequence[Question]:
        """Every prompt, once for each of its answers.

        Raises:
            SourceError: the file has no prompts.
        """
        path = PROMPTS.find(data)
        shipped = resources.files("jsfree.evaluation.benchmarks") / "text_prompts.txt"
        lines = (shipped if path is None else path).read_text(encoding="utf-8").splitlines()
        prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not prompts:
            raise SourceError(f"{path} has no prompts", "write one a line, or remove the file")
        return [
            Question(f"{number}/{draw}", {"id": f"{number}", "uri": None, "bytes": None, "sha256": None}, prompt)
            for number, prompt in enumerate(prompts)
            for draw in range(DRAWS)
        ]

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Count words, repetitions and log-probabilities; ``extra["logps"]`` are those of the seed's answer."""
        asked = self.questions(data)
        return Measured(
            [_count(answer) for answer in answers],
            [{"question_id": answer.question_id, "answer": answer.text} for answer in answers],
            notes=[f"{len(asked) // DRAWS} prompts (hash {prompts_hash([each.prompt for each in asked])})."],
        )


def _count(answer: Answer) -> CountRow:
    repeated, ngrams = repeated_ngrams(answer.text)
    logps = answer.extra.get("logps", ())
    counts = {
        "answers": 1,
        "answer_words": len(answer.text.split()),
        "repeated": repeated,
        "ngrams": ngrams,
        "cut": answer.extra.get("finish") == "length",
        "logp": sum(logps),
        "tokens": len(logps),
    }
    return CountRow(answer.image_id, {name: float(value) for name, value in counts.items()})

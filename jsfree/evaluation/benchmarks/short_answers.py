"""Short answers to questions about images, right if they equal the given one: accuracy before and after.

    <data>/questions.json    a list, or a line each, of {"image", "question", "answer"}; optional: "question_id", "type"
    <data>/images/

The rule is that of GQA's accuracy apart from letter case, articles and punctuation, which do not count here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite, prompts_hash
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.judged import unknown_row
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, ratio
from jsfree.evaluation.benchmarks.records import read_records
from jsfree.evaluation.metrics import Metric
from jsfree.stages.sentences import words

FILE = Requirement("questions.json|questions.jsonl", "questions with their answers", "your own, or a part of GQA")
IMAGES = Requirement("images", "the images of the questions", "your own, or GQA's", optional=True)
KEYS = ("image", "question", "answer")
ARTICLES = frozenset({"a", "an", "the"})


def normalised(answer: str) -> list[str]:
    """The words of an answer that count."""
    return [word for word in words(answer) if word not in ARTICLES]


@dataclass(frozen=True)
class ShortAnswers(Suite):
    """Accuracy of short answers."""

    name: ClassVar[str] = "shortanswers"
    title: ClassVar[str] = "Short answers"
    source: ClassVar[str] = "jsfree; with questions of GQA, arXiv 1902.09506"
    requirements: ClassVar[tuple[Requirement, ...]] = (FILE, IMAGES)
    folders: ClassVar[tuple[str, ...]] = ("shortanswers",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(Metric("accuracy", "Accuracy", "answers that are right", "higher"), ratio("right", "answers")),
        Measure(Metric("answer_words", "Words", "of an answer", None, 1.0, "", 1), ratio("words", "answers")),
    )
    generation: ClassVar[Generation] = Generation(max_new_tokens=16)
    describes_images: ClassVar[bool] = False

    @property
    def protocol(self) -> Mapping[str, Any]:
        """When an answer is right."""
        return {"right": "all words equal; case, articles and punctuation do not count"}

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions; their ids are those of the file, or their positions from 0.

        Raises:
            SourceError: the file is missing or wrong, or an id occurs twice.
        """
        folder = IMAGES.find(data) or data / "images"
        return [
            Question(
                name,
                {"id": values["image"], "uri": str(folder / values["image"]), "bytes": None, "sha256": None},
                values["question"],
            )
            for name, values in self._items(data).items()
        ]

    def _items(self, data: DataPath) -> dict[str, Mapping[str, Any]]:
        items: dict[str, Mapping[str, Any]] = {}
        for number, (place, values) in enumerate(read_records(FILE.require(data), dict.fromkeys(KEYS, str))):
            name = str(values.get("question_id", number))
            if name in items:
                raise SourceError(f"{place}: question_id {name!r} occurs again", "keep one of the questions")
            items[name] = values
        return items

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Compare the answers with the given ones; those to other questions are errors."""
        items = self._items(data)
        known = [answer for answer in answers if answer.question_id in items]
        return Measured(
            [_count(answer, items[answer.question_id]) for answer in known],
            [
                {"question_id": each.question_id, "answer": each.text, "truth": items[each.question_id]["answer"]}
                for each in known
            ],
            [unknown_row(each.question_id, each.where) for each in answers if each.question_id not in items],
            notes=[f"{len(items)} questions (hash {prompts_hash([item['question'] for item in items.values()])})."],
        )


def _count(answer: Answer, item: Mapping[str, Any]) -> CountRow:
    is_right = normalised(answer.text) == normalised(item["answer"])
    counts = {"answers": 1.0, "right": float(is_right), "words": float(len(answer.text.split()))}
    return CountRow(item["image"], counts, str(item.get("type", "")))

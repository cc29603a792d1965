"""MMHal-Bench: a judge rates answers to 96 questions against references (Sun et al. 2023, arXiv 2309.14525).

The judge does not see the image but a list of its contents. The published prompt and judges (gpt-4-0314, later
gpt-4-1106-preview) are not used here: the first is not part of this project, the others are retired.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jsfree.evaluation.benchmarks.agreement import with_second_judge
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite, prompts_hash
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.judged import error_rows, prompt, unknown_row
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, ratio
from jsfree.evaluation.benchmarks.records import Record, read_records
from jsfree.evaluation.metrics import Metric
from jsfree.judge.judging import Judge
from jsfree.judge.prompts import Prompt
from jsfree.judge.requests import JudgeRequest

TYPES = 8
"""Number of question types. The type of an item is its position modulo 8, so the order of the items matters."""
BEST = 6
RATING = re.compile(rf"rating: ([0-{BEST}])", re.IGNORECASE)
HALLUCINATED_BELOW = 3
KEYS: dict[str, type] = {"image_id": str, "question": str, "gt_answer": str, "image_content": list}


def parse_rating(reply: str) -> int | None:
    """The only number from 0 to 6 that follows "rating: "; None if there is none, or there are several."""
    found = {int(number) for number in RATING.findall(reply)}
    return found.pop() if len(found) == 1 else None


def informativeness(rating: int) -> int:
    """How informative an answer is, from 0 to 3, whether or not it hallucinates (RLAIF-V's reading of the scale)."""
    return rating - HALLUCINATED_BELOW if rating >= HALLUCINATED_BELOW else rating


@dataclass(frozen=True)
class MMHal(Suite):
    """MMHal-Bench with a judge.

    Args:
        judge: rates the answers.
        second: another judge, whose agreement with the first is reported.
        rating_prompt: with the placeholders ``contents``, ``question``, ``reference`` and ``answer``. The published
            prompt can be passed here.
    """

    judge: Judge
    second: Judge | None = None
    rating_prompt: Prompt = field(default_factory=lambda: prompt("mmhal_rating"))

    name: ClassVar[str] = "mmhal"
    title: ClassVar[str] = "MMHal-Bench"
    source: ClassVar[str] = "Sun et al. 2023, arXiv 2309.14525; informativeness as in RLAIF-V, arXiv 2405.17220"
    folders: ClassVar[tuple[str, ...]] = ("mmhal",)
    requirements: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "response_template.json|mmhal-bench.json",
            "the 96 questions in their order",
            "huggingface.co/datasets/Shengcao1006/MMHal-Bench",
        ),
        Requirement("images", "the images, by the file names of 'image_src'", "the same data set", optional=True),
    )
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            Metric("score", "Score", f"mean rating, 0 to {BEST}", "higher", 1.0, "", 2), ratio("rating", "answers")
        ),
        Measure(
            Metric("hallucination_rate", "Hallucination rate", "answers rated below 3", "lower"),
            ratio("hallucinated", "answers"),
        ),
        Measure(
            Metric("informativeness", "Informativeness", "of answers, apart from hallucination", "higher"),
            ratio("informativeness", "informativeness_best"),
        ),
        Measure(
            Metric("unrated", "Unrated", "replies without exactly one rating, which count 0", "lower"),
            ratio("unrated", "answers"),
        ),
    )
    generation: ClassVar[Generation] = Generation(max_new_tokens=1024)
    describes_images: ClassVar[bool] = False

    @property
    def judges(self) -> tuple[Judge, ...]:
        return (self.judge,) if self.second is None else (self.judge, self.second)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The prompt, the scale, and the rule for replies without a rating."""
        return {
            "prompt": self.rating_prompt.as_json(),
            "scale": [0, BEST],
            "unrated_counts": 0,
            "type": f"position modulo {TYPES}",
        }

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions in their order; their ids are the positions, from 0."""
        folder = self.requirements[1].find(data) or data / "images"
        return [
            Question(
                str(number),
                {
                    "id": values["image_id"],
                    "uri": str(folder / str(values.get("image_src", values["image_id"])).rpartition("/")[2]),
                    "bytes": None,
                    "sha256": None,
                },
                values["question"],
            )
            for number, (_, values) in enumerate(self._items(data))
        ]

    def _items(self, data: DataPath) -> list[Record]:
        return read_records(self.requirements[0].require(data), KEYS)

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Let the judge rate the answers, which have the ids of their questions or, as in files of MMHal, of images.

        Raises:
            SourceError: the data file is missing or wrong.
            JudgeError: the judge stopped; run it again, its replies are stored.
        """
        measured = self._score(data, answers)
        if self.second is None:
            return measured
        return with_second_judge(measured, replace(self, judge=self.second, second=None).score(data, answers))

    def _score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        items = {str(number): record.values for number, record in enumerate(self._items(data))}
        numbers = {str(item["image_id"]): number for number, item in items.items()}
        answers = [
            each
            if each.question_id in items
            else replace(each, question_id=numbers.get(each.image_id, each.question_id))
            for each in answers
        ]
        known = [answer for answer in answers if answer.question_id in items]
        requests = (self._request(items[answer.question_id], answer) for answer in known)
        judgements = self.judge.ask(requests, lambda reply: (parse_rating(reply), reply))
        rows, details = [], []
        for answer, judgement in zip(known, judgements, strict=True):
            if judgement.value is None:
                continue
            rating, reply = judgement.value
            item = items[answer.question_id]
            kind = question_type(int(answer.question_id), item)
            rows.append(_count(item["image_id"], kind, rating))
            details.append({"question_id": answer.question_id, "type": kind, "rating": rating, "reply": reply})
        unknown = [unknown_row(each.question_id, each.where) for each in answers if each.question_id not in items]
        return Measured(
            rows,
            details,
            [*unknown, *error_rows(judgements)],
            self.judge.record(self.rating_prompt),
            self._notes(len(items), [str(item["question"]) for item in items.values()]),
        )

    def _request(self, item: Mapping[str, Any], answer: Answer) -> JudgeRequest:
        text = self.rating_prompt.fill(
            contents=", ".join(map(str, item["image_content"])),
            question=item["question"],
            reference=item["gt_answer"],
            answer=answer.text,
        )
        return JudgeRequest(answer.question_id, text)

    def _notes(self, count: int, questions: Sequence[str]) -> list[str]:
        notes = [f"{count} questions (hash {prompts_hash(questions)}), judged by {self.judge.settings.model}."]
        notes.append(f"Judge, in this command so far: {self.judge.summary()}.")
        if count != 96:
            notes.append("MMHal-Bench has 96 questions: these are others, and the types may be wrong.")
        if self.rating_prompt == prompt("mmhal_rating"):
            notes.append("The prompt is not the published one, so scores do not compare with publications.")
        return notes


def question_type(number: int, item: Mapping[str, Any]) -> str:
    """Name of the type of the item at position ``number``: that of the data, or the number of the type."""
    return str(item.get("question_type", f"type {number % TYPES}"))


def _count(image: str, kind: str, rating: int | None) -> CountRow:
    counted = rating or 0
    counts = {
        "answers": 1,
        "rating": counted,
        "hallucinated": counted < HALLUCINATED_BELOW,
        "informativeness": informativeness(counted),
        "informativeness_best": HALLUCINATED_BELOW,
        "unrated": rating is None,
    }
    return CountRow(image, {name: float(value) for name, value in counts.items()}, kind)

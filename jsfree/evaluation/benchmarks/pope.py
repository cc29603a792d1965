"""POPE: questions whether an object is in an image (Li et al. 2023, arXiv 2305.10355).

Half of the questions ask for objects that are there. The others ask for absent objects: drawn at random, the most
frequent ones, or those that occur most often with an object that is there. Four ways of reading answers are in use
(``SCORINGS``), which differ for anything but a bare "Yes" or "No".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite, prompts_hash
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.judged import unknown_row
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, harmonic_mean, ratio
from jsfree.evaluation.benchmarks.records import read_records
from jsfree.evaluation.metrics import Metric

Kind = Literal["random", "popular", "adversarial"]
Scoring = Literal["original", "vcd", "lmms-eval", "vlmevalkit"]
KINDS: tuple[Kind, ...] = ("random", "popular", "adversarial")
ORIGIN = "output/coco of github.com/RUCAIBox/POPE, or 'jsfree miniworld export --layout pope'"
MISSPELT = re.compile(r"\bimange\b")
"""What the original generator makes of "image" in questions with "an"."""


class Reader(NamedTuple):
    """A way to read answers.

    Args:
        suffix: appended to each question when the captioner is asked.
        says_yes: maps an answer and the label to whether it counts as yes; None if it counts as neither.
        meaning: the rule in a sentence.
    """

    suffix: str
    says_yes: Callable[[str, bool], bool | None]
    meaning: str


def original(answer: str, label: bool) -> bool:  # noqa: ARG001
    """RUCAIBox/POPE: no if "No", "no" or "not" is a word before the first full stop, otherwise yes."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return not any(word in ("No", "no", "not") for word in words)


def vcd(answer: str, label: bool) -> bool:
    """DAMO-NLP-SG/VCD: right if the lower-case answer contains the label, so "not" and "know" contain "no"."""
    return ("yes" in answer.lower()) if label else ("no" not in answer.lower())


def lmms_eval(answer: str, label: bool) -> bool | None:  # noqa: ARG001
    """lmms-eval: the whole answer must be yes or no, in any case."""
    return {"yes": True, "no": False}.get(answer.strip().lower())


def vlmevalkit(answer: str, label: bool) -> bool | None:  # noqa: ARG001
    """VLMEvalKit without its language model: exactly one of the words yes and no must occur."""
    words = set(re.sub(r"[^\w\s]", " ", answer.lower()).split())
    return None if ("yes" in words) == ("no" in words) else "yes" in words


SCORINGS: dict[Scoring, Reader] = {
    "original": Reader("", original, "no if 'No', 'no' or 'not' is a word before the first full stop, otherwise yes"),
    "vcd": Reader(
        " Please answer this question with one word.", vcd, "right if the lower-case answer contains the label"
    ),
    "lmms-eval": Reader(
        "\nAnswer the question using a single word or phrase.", lmms_eval, "the whole answer must be yes or no"
    ),
    "vlmevalkit": Reader(
        "", vlmevalkit, "exactly one of the words yes and no; VLMEvalKit asks a language model about the others"
    ),
}


def _measures() -> tuple[Measure, ...]:
    precision, recall = ratio("true_yes", "said_yes"), ratio("true_yes", "label_yes")
    return (
        Measure(Metric("accuracy", "Accuracy", "answers that are right", "higher"), ratio("right", "answers")),
        Measure(Metric("precision", "Precision", "right answers of those that say yes", "higher"), precision),
        Measure(Metric("recall", "Recall", "objects that are there and confirmed", "higher"), recall),
        Measure(
            Metric("f1", "F1", "harmonic mean of precision and recall", "higher"), harmonic_mean(precision, recall)
        ),
        Measure(Metric("yes_ratio", "Yes", "answers that say yes", None), ratio("said_yes", "answers")),
        Measure(
            Metric("undecided", "Undecided", "answers that are neither yes nor no, and count as wrong", "lower"),
            ratio("undecided", "answers"),
        ),
    )


@dataclass(frozen=True)
class PopeQuestion:
    """A question with its label; ``question_id`` is unique among the kinds that are used."""

    question_id: str
    kind: Kind
    image: str
    text: str
    label: bool


@dataclass(frozen=True)
class Pope(Suite):
    """POPE with the kinds of questions whose files are present, read in one way.

    With several kinds, ids of questions are ``<kind>/<id of the file>``; with one kind, they are those of its file.
    """

    kinds: tuple[Kind, ...] = KINDS
    scoring: Scoring = "original"

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"
    source: ClassVar[str] = "Li et al. 2023, arXiv 2305.10355; github.com/RUCAIBox/POPE"
    folders: ClassVar[tuple[str, ...]] = ("pope", "coco")
    requirements: ClassVar[tuple[Requirement, ...]] = (
        *(Requirement(f"coco_pope_{kind}.json", f"{kind} questions", ORIGIN, optional=True) for kind in KINDS),
        Requirement("val2014|images", "the images of the questions", "val2014.zip of cocodataset.org", optional=True),
    )
    measures: ClassVar[tuple[Measure, ...]] = _measures()
    generation: ClassVar[Generation] = Generation(max_new_tokens=16)
    describes_images: ClassVar[bool] = False

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The way to read answers, and what is appended to questions; notes name the kinds of questions."""
        reader = SCORINGS[self.scoring]
        return {
            "scoring": self.scoring,
            "scoring_is": reader.meaning,
            "suffix": reader.suffix,
            "positive": "yes",
            "undecided": "wrong; counted in the denominators of accuracy and recall",
        }

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions of all kinds, with the suffix of the scoring."""
        suffix = SCORINGS[self.scoring].suffix
        folder = self.requirements[-1].find(data) or data / "val2014"
        return [
            Question(
                each.question_id,
                {"id": each.image, "uri": str(folder / each.image), "bytes": None, "sha256": None},
                each.text + suffix,
            )
            for each in self.read(data)
        ]

    def read(self, data: DataPath) -> list[PopeQuestion]:
        """The questions of the data files.

        Raises:
            SourceError: a file is missing or wrong, or an id occurs twice.
        """
        questions: dict[str, PopeQuestion] = {}
        kinds = [kind for kind in self.kinds if self.requirements[KINDS.index(kind)].find(data)] or self.kinds
        for kind in kinds:
            path = self.requirements[KINDS.index(kind)].require(data)
            for place, values in read_records(path, {"question_id": int, "image": str, "text": str, "label": str}):
                number = str(values["question_id"])
                question_id = f"{kind}/{number}" if len(kinds) > 1 else number
                if question_id in questions:
                    raise SourceError(f"{place}: question_id {number} occurs again", "keep one of the questions")
                label = {"yes": True, "no": False}.get(values["label"].strip().lower())
                if label is None:
                    raise SourceError(f"{place}: 'label' is {values['label']!r}", "it must be yes or no")
                questions[question_id] = PopeQuestion(question_id, kind, values["image"], values["text"], label)
        return list(questions.values())

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Compare the answers with the labels; answers to other questions are errors."""
        questions = {each.question_id: each for each in self.read(data)}
        known = [(questions[answer.question_id], answer) for answer in answers if answer.question_id in questions]
        says_yes = SCORINGS[self.scoring].says_yes
        read = [says_yes(answer.text, question.label) for question, answer in known]
        return Measured(
            rows=[_count(question, said) for (question, _), said in zip(known, read, strict=True)],
            details=[
                {
                    "question_id": question.question_id,
                    "image": question.image,
                    "label": "yes" if question.label else "no",
                    "answer": answer.text,
                    "read_as": {True: "yes", False: "no", None: None}[said],
                }
                for (question, answer), said in zip(known, read, strict=True)
            ],
            errors=[unknown_row(each.question_id, each.where) for each in answers if each.question_id not in questions],
            notes=self._notes(list(questions.values())),
        )

    def _notes(self, questions: Sequence[PopeQuestion]) -> list[str]:
        misspelt = sum(bool(MISSPELT.search(each.text)) for each in questions)
        notes = [
            f"{misspelt} of {len(questions)} questions say 'imange', an error of the original generator: results differ"
            " from those of repaired files."
            if misspelt
            else f"The article of all {len(questions)} questions is right: this copy of the files is repaired.",
            f"Questions: {', '.join(dict.fromkeys(each.kind for each in questions))}"
            f" (hash {prompts_hash([each.text for each in questions])}).",
        ]
        if self.scoring == "lmms-eval":
            notes.append("The yes ratio counts answers; lmms-eval's counts labels and is always 0.5.")
        return notes


def _count(question: PopeQuestion, said: bool | None) -> CountRow:
    counts = {
        "answers": 1,
        "right": said is question.label,
        "said_yes": said is True,
        "true_yes": said is True and question.label,
        "label_yes": question.label,
        "undecided": said is None,
    }
    return CountRow(question.image, {name: float(value) for name, value in counts.items()}, question.kind)

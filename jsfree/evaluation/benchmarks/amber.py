"""AMBER: captions against annotated objects, and yes/no questions (Wang et al. 2023, arXiv 2311.07397).

Generative items, in this order for each noun of the vocabulary (``relation.json``) in an answer:

1. a safe word counts as right;
2. an object of the image, or a word related to one, is right and covers the object;
3. a word of the list of likely hallucinations, or one related or similar to it, marks that entry (Cog);
4. a word similar to an object of the image is right after all, and covers it; everything else is hallucinated.

Discriminative items are right if the answer is exactly "Yes" or "No"; "No" is the positive class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.amber_nouns import Nouns, Similarity, load_similarity, noun_finder
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.judged import unknown_row
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, harmonic_mean, ratio
from jsfree.evaluation.benchmarks.records import Record, read_object, read_records
from jsfree.evaluation.metrics import Metric

ORIGIN = "data/ of github.com/junyangwang0410/AMBER"
SAFE_WORDS = ("orange", "snack", "line", "camera", "light", "shoe", "sign", "range", "individual")
SIMILAR_ABOVE = 0.8
BARE = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
"""A reply that begins with Yes or No."""
GENERATIVE = "generative"
NounStack = Literal["rule", "nltk"]
NOUN_STACKS: tuple[NounStack, ...] = ("rule", "nltk")
Task = Literal["all", "generative", "discriminative"]


class Target(NamedTuple):
    """A word that matches entry ``number`` of a list of objects."""

    word: str
    number: int


def targets(objects: Sequence[str], relations: Mapping[str, Sequence[str]]) -> list[Target]:
    """The words that match a list of objects: first those related to each of them, then the objects themselves."""
    related = [Target(word, number) for number, name in enumerate(objects) for word in relations[name]]
    return [*related, *(Target(name, number) for number, name in enumerate(objects))]


@dataclass(frozen=True)
class CheckedNouns:
    """The nouns of an answer.

    Args:
        kept: nouns of the vocabulary, in order, repeats kept.
        hallucinated: those of ``kept`` that are hallucinated.
        covered: numbers of the image's objects that are named.
        expected: numbers of the likely hallucinations that are named.
    """

    kept: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    expected: frozenset[int]


def check_nouns(
    nouns: Sequence[str], truth: Sequence[Target], likely: Sequence[Target], similarity: Similarity | None
) -> CheckedNouns:
    """Apply the rules to the nouns of an answer that are in the vocabulary.

    Args:
        truth: words that match the image's objects.
        likely: words that match likely hallucinations.
        similarity: None to leave out the comparisons by similarity.
    """
    hallucinated: list[str] = []
    covered: set[int] = set()
    expected: set[int] = set()
    for noun in nouns:
        if noun in SAFE_WORDS:
            continue
        if (target := _equal(noun, truth)) is not None:
            covered.add(target.number)
            continue
        marked = (_equal(noun, likely), _similar(noun, likely, similarity))
        expected.update(target.number for target in marked if target)
        if (target := _similar(noun, truth, similarity)) is not None:
            covered.add(target.number)
            continue
        hallucinated.append(noun)
    return CheckedNouns(tuple(nouns), tuple(hallucinated), frozenset(covered), frozenset(expected))


def _equal(noun: str, among: Sequence[Target]) -> Target | None:
    return next((target for target in among if target.word == noun), None)


def _similar(noun: str, among: Sequence[Target], similarity: Similarity | None) -> Target | None:
    if similarity is None:
        return None
    return next((target for target in among if similarity(noun, target.word) > SIMILAR_ABOVE), None)


def _measures() -> tuple[Measure, ...]:
    precision, recall = ratio("right_no", "said_no"), ratio("right_no", "truth_no")
    return (
        Measure(
            Metric("CHAIR", "CHAIR", "nouns of the vocabulary that are hallucinated", "lower"),
            ratio("hallucinated", "nouns"),
        ),
        Measure(Metric("Cover", "Cover", "objects of the images that are named", "higher"), ratio("covered", "truth")),
        Measure(
            Metric("Hal", "Hal", "captions with a hallucination", "lower"), ratio("hallucinated_captions", "described")
        ),
        Measure(Metric("Cog", "Cog", "likely hallucinations that are named", "lower"), ratio("expected", "likely")),
        Measure(Metric("accuracy", "Accuracy", "yes/no answers that are right", "higher"), ratio("right", "asked")),
        Measure(Metric("precision", "Precision", "right answers of those that say no", "higher"), precision),
        Measure(Metric("recall", "Recall", "questions to be answered by no that are", "higher"), recall),
        Measure(
            Metric("f1", "F1", "harmonic mean of precision and recall of no", "higher"),
            harmonic_mean(precision, recall),
        ),
    )


@dataclass(frozen=True)
class Amber(Suite):
    """AMBER.

    Args:
        task: the items to use.
        nouns: how nouns are found: by a rule, or by NLTK as in the original.
        vectors: vectors for similarities (``load_similarity``); the original's are ``en_core_web_lg``. None leaves the
            comparisons out.
    """

    task: Task = "all"
    nouns: NounStack = "rule"
    vectors: str | None = None

    name: ClassVar[str] = "amber"
    title: ClassVar[str] = "AMBER"
    source: ClassVar[str] = "Wang et al. 2023, arXiv 2311.07397; github.com/junyangwang0410/AMBER"
    folders: ClassVar[tuple[str, ...]] = ("amber",)
    requirements: ClassVar[tuple[Requirement, ...]] = (
        Requirement("query/query_all.json|data/query/query_all.json", "all questions", ORIGIN),
        Requirement("annotations.json|data/annotations.json", "objects and labels", ORIGIN),
        Requirement("relation.json|data/relation.json", "the vocabulary: objects and related words", ORIGIN),
        Requirement("image|images", "the images", "the link in AMBER's README", optional=True),
    )
    measures: ClassVar[tuple[Measure, ...]] = _measures()
    generation: ClassVar[Generation] = Generation(max_new_tokens=512)
    describes_images: ClassVar[bool] = False

    def details_document(self, result: Mapping[str, Any]) -> Any:
        """What was found in each caption, and the scores as AMBER's script prints them."""
        return {"printed": printed_scores(result["sums"]), "captions": result["details"]}

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Items, nouns, vectors and the class that counts as positive."""
        return {
            "task": self.task,
            "nouns": self.nouns,
            "vectors": self.vectors,
            "similar_above": SIMILAR_ABOVE,
            "safe_words": list(SAFE_WORDS),
            "positive": "No",
            "answers": "exactly Yes or No",
            "replies": "of models asked here: the first word, if it is Yes or No",
        }

    @cached_property
    def _similarity(self) -> Similarity | None:
        return load_similarity(self.vectors) if self.vectors else None

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions of the task."""
        annotations = self._annotations(data)
        folder = self.requirements[3].find(data) or data / "image"
        questions = []
        keys: dict[str, type] = {"id": int, "image": str, "query": str}
        for place, values in read_records(self.requirements[0].require(data), keys):
            question_id, image = str(values["id"]), str(values["image"])
            if question_id not in annotations:
                raise SourceError(f"{place}: id {question_id} is not in annotations.json", "download both files again")
            if self._uses(annotations[question_id].values):
                uri = str(folder / image)
                questions.append(
                    Question(question_id, {"id": image, "uri": uri, "bytes": None, "sha256": None}, values["query"])
                )
        return questions

    def as_answers(self, data: DataPath, replies: Sequence[Answer]) -> Sequence[Answer]:
        """Replies to yes/no questions as AMBER's file of answers has them: bare, if they begin with Yes or No."""
        annotations = self._annotations(data)
        asked = {name for name, record in annotations.items() if record.values["type"] != GENERATIVE}
        return [
            replace(reply, text=match[1].capitalize())
            if reply.question_id in asked and (match := BARE.match(reply.text))
            else reply
            for reply in replies
        ]

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Check the nouns of captions, and compare the other answers with the labels."""
        annotations = self._annotations(data)
        relations = read_object(self.requirements[2].require(data), list)
        vocabulary = {*relations, *(word for words in relations.values() for word in words)}
        find_nouns = noun_finder(self.nouns, vocabulary)
        images = {question.question_id: question.image["id"] for question in self.questions(data)}
        rows, details, errors = [], [], []
        for answer in answers:
            record = annotations.get(answer.question_id)
            if record is None or answer.question_id not in images:
                errors.append(unknown_row(answer.question_id, answer.where))
            elif record.values["type"] == GENERATIVE:
                checked = self._check(answer, record, relations, vocabulary, find_nouns)
                rows.append(_caption_row(images[answer.question_id], checked, record.values))
                details.append(_caption_detail(answer, checked))
            else:
                rows.append(_question_row(images[answer.question_id], answer.text, record))
        return Measured(rows, details, errors, notes=self._notes())

    def _check(
        self, answer: Answer, record: Record, relations: Mapping[str, Any], vocabulary: set[str], find_nouns: Nouns
    ) -> CheckedNouns:
        names = [*record.values["truth"], *record.values["hallu"]]
        missing = next((name for name in names if name not in relations), None)
        if missing is not None:
            raise SourceError(f"{record.place}: {missing!r} is not in relation.json", "download both files again")
        kept = [noun for noun in find_nouns(answer.text) if noun in vocabulary]
        truth, likely = (targets(record.values[key], relations) for key in ("truth", "hallu"))
        return check_nouns(kept, truth, likely, self._similarity)

    def _annotations(self, data: DataPath) -> dict[str, Record]:
        """Annotations by id.

        Raises:
            SourceError: the file is missing or wrong.
        """
        records = read_records(self.requirements[1].require(data), {"id": int, "type": str})
        for place, values in records:
            wanted = ("truth", "hallu") if values["type"] == GENERATIVE else ("truth",)
            kind: type = list if values["type"] == GENERATIVE else str
            for key in wanted:
                if not isinstance(values.get(key), kind):
                    raise SourceError(f"{place}: {key!r} is missing or wrong", "download the file again")
        return {str(record.values["id"]): record for record in records}

    def _uses(self, annotation: Mapping[str, Any]) -> bool:
        return self.task == "all" or (annotation["type"] == GENERATIVE) == (self.task == GENERATIVE)

    def _notes(self) -> list[str]:
        if self.task == "discriminative":
            return []
        notes = []
        if self.vectors is None:
            notes.append(
                "Nouns were not compared by similarity, because no vectors were given: words that only en_core_web_lg"
                " relates to an object of the image count as hallucinated. CHAIR, Hal and Cog differ from AMBER's."
            )
        elif self.vectors != "en_core_web_lg":
            notes.append(f"Similarities are those of {self.vectors}, not of AMBER's en_core_web_lg.")
        if self.nouns == "rule":
            notes.append("Every word of the vocabulary is taken for a noun; AMBER asks NLTK's tagger.")
        return notes


def _caption_row(image: str, checked: CheckedNouns, annotation: Mapping[str, Any]) -> CountRow:
    counts = {
        "described": 1,
        "nouns": len(checked.kept),
        "hallucinated": len(checked.hallucinated),
        "hallucinated_captions": bool(checked.hallucinated),
        "covered": len(checked.covered),
        "truth": len(annotation["truth"]),
        "expected": len(checked.expected),
        "likely": len(annotation["hallu"]),
    }
    return CountRow(image, {name: float(value) for name, value in counts.items()}, GENERATIVE)


def _caption_detail(answer: Answer, checked: CheckedNouns) -> dict[str, Any]:
    return {
        "question_id": answer.question_id,
        "nouns": list(checked.kept),
        "hallucinated": list(checked.hallucinated),
        "covered": sorted(checked.covered),
        "likely_hallucinations": sorted(checked.expected),
    }


def _question_row(image: str, text: str, record: Record) -> CountRow:
    says_no, is_no = text == "No", record.values["truth"] == "no"
    counts = {
        "asked": 1,
        "right": says_no if is_no else text == "Yes",
        "said_no": says_no,
        "truth_no": is_no,
        "right_no": says_no and is_no,
    }
    return CountRow(image, {name: float(value) for name, value in counts.items()}, record.values["type"])


def printed_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """The percentages that AMBER's script prints for these sums.

    Denominators start at 0.001, and precision and recall are rounded to 0.1 before F1 is computed from them.
    """

    def percent(top: str, bottom: str) -> float:
        return round(sums.get(top, 0.0) / (sums.get(bottom, 0.0) + 0.001) * 100, 1)

    precision, recall = percent("right_no", "said_no") / 100, percent("right_no", "truth_no") / 100
    return {
        "CHAIR": percent("hallucinated", "nouns"),
        "Cover": percent("covered", "truth"),
        "Hal": percent("hallucinated_captions", "described"),
        "Cog": percent("expected", "likely"),
        "accuracy": percent("right", "asked"),
        "precision": round(precision * 100, 1),
        "recall": round(recall * 100, 1),
        "f1": round(2 * precision * recall / (precision + recall + 0.0001) * 100, 1),
    }

"""Object HalBench: object hallucination in descriptions of 300 COCO images (Yu et al. 2023, arXiv 2312.00849).

As CHAIR with a cleaned vocabulary, but objects are extracted from the answer instead of looked up word by word, and an
object counts once an answer and word. Numbers of different extractors do not compare; the published one
(gpt-3.5-turbo-0613) is retired.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite
from jsfree.evaluation.benchmarks.coco import REQUIREMENTS, read_annotations, require_images
from jsfree.evaluation.benchmarks.measuring import Measure, complement, harmonic_mean, ratio
from jsfree.evaluation.benchmarks.nouns import NounLemmas
from jsfree.evaluation.benchmarks.objects import CheckedAnswer, overall_metrics
from jsfree.evaluation.benchmarks.tokens import tokenize
from jsfree.evaluation.benchmarks.vocabulary import Mention, Reading, Vocabulary, drop_toilet_seats
from jsfree.evaluation.metrics import Metric

Extractor = Literal["words", "objects"]
EXTRACTORS: dict[Extractor, str] = {
    "words": "every object word of the answer, repeats included; no judge",
    "objects": "the strings of the key 'objs' of each answer, found by an extractor of the user's",
}
QUESTIONS = Requirement(
    "obj_halbench_300_with_image.jsonl",
    "300 questions with their images (63,537,348 bytes, sha256 e89c705f...)",
    "eval/data of the repository RLHF-V/RLHF-V or RLHF-V/RLAIF-V",
    optional=True,
    for_questions=True,
)
_RESP = ratio("hallucinated_responses", "responses_with_objects")
_RECALL = ratio("correct", "truth")
_ORIGINAL_NAMES = {
    "CHAIRs": "CHAIRs",
    "CHAIRs_refine": "Resp",
    "CHAIRi": "Ment",
    "obj_rec": "recall",
    "correct_rate": "correct_rate",
    "object_correct_rate": "object_correct_rate",
    "avg_word_len": "length",
    "f1": "f1",
}
_ORIGINAL_SUMS = {
    "sentence_num": "responses",
    "coco_sentence_num": "responses_with_objects",
    "coco_word_count": "correct",
    "gt_word_count": "truth",
}


@dataclass(frozen=True)
class HalBench(Suite):
    """Object HalBench with a vocabulary that merges all of its phrases.

    Args:
        beams: beams of the answers that are generated here; the published script uses 3.
    """

    vocabulary: Vocabulary
    extractor: Extractor = "words"
    beams: int = 3

    name: ClassVar[str] = "halbench"
    title: ClassVar[str] = "Object HalBench"
    source: ClassVar[str] = "Yu et al. 2023, arXiv 2312.00849; RLAIF-V, arXiv 2405.17220"
    has_coco_ids = True
    folders = ("halbench", "coco")
    requirements = (*REQUIREMENTS, QUESTIONS)
    measures = (
        Measure(
            Metric("Resp", "Resp.", "responses with a hallucinated object, of those that name any", "lower"), _RESP
        ),
        Measure(
            Metric("Ment", "Ment.", "mentions of objects that are hallucinated", "lower"),
            ratio("hallucinated", "mentions"),
        ),
        Measure(Metric("recall", "Recall", "objects of the images that are named", "higher"), _RECALL),
        Measure(
            Metric("f1", "F1", "harmonic mean of recall and 1 - Resp.", "higher"),
            harmonic_mean(_RECALL, complement(_RESP)),
        ),
        Measure(
            Metric("length", "Length", "parts between blanks, per response", None, 1.0, "", 1, secondary=True),
            ratio("blanks", "responses"),
        ),
        Measure(
            Metric("CHAIRs", "CHAIRs", "responses with a hallucinated object, of all", "lower", secondary=True),
            ratio("hallucinated_responses", "responses"),
        ),
        Measure(Metric("correct_rate", "Correct responses", "1 - Resp.", "higher", secondary=True), complement(_RESP)),
        Measure(
            Metric("object_correct_rate", "Correct mentions", "1 - Ment.", "higher", secondary=True),
            complement(ratio("hallucinated", "mentions")),
        ),
    )

    @property
    def generation(self) -> Generation:
        """Up to 1024 tokens at temperature 0."""
        return Generation(max_new_tokens=1024, beams=self.beams)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Extractor and vocabulary."""
        return {
            "extractor": self.extractor,
            "extractor_is": EXTRACTORS[self.extractor],
            "vocabulary": self.vocabulary.name,
            "vocabulary_hash": self.vocabulary.fingerprint,
        }

    def questions(self, data: Path) -> Sequence[Question]:
        """The questions of the published file, with their images.

        Raises:
            SourceError: the file is missing, a line is wrong, or the vocabulary lacks an annotated category.
        """
        questions = list(_questions(QUESTIONS.require(data)))
        read_annotations(data, {each.image["id"] for each in questions}).require_categories(self.vocabulary)
        return questions

    def score(self, data: Path, answers: Sequence[Answer]) -> Measured:
        """Compare the objects of each answer with those of its image."""
        answers = [replace(answer, text=clean(answer.text)) for answer in answers]
        where = {answer.image_id: answer.where for answer in reversed(answers)}
        annotations = read_annotations(data, where.keys())
        require_images(annotations, where, data)
        lemmas = NounLemmas(self.vocabulary.single_words)

        def words(text: str) -> Reading:
            return self.vocabulary.read([lemmas(token) for token in tokenize(text)])

        truth = annotations.truth(self.vocabulary, lambda caption: words(caption).categories)
        checked = []
        for answer in answers:
            if self.extractor == "words":
                reading = words(answer.text)
                found: tuple[Sequence[Mention], Sequence[str]] = reading.mentions, reading.words
            else:
                objects = list(dict.fromkeys(_objects(answer)))
                found = look_up(objects, self.vocabulary), objects
            checked.append(CheckedAnswer(answer, found[0], truth[answer.image_id], found[1]))
        details = [each.as_json() | {"objs": list(each.words)} for each in checked]
        return Measured([each.count() for each in checked], details)

    def details_document(self, result: Mapping[str, Any]) -> Any:
        """The layout of the original's ``hall_*.json``."""
        totals = {name: result["sums"].get(column, 0) for name, column in _ORIGINAL_SUMS.items()}
        return {
            "overall_metrics": overall_metrics(result, _ORIGINAL_NAMES) | totals,
            "sentences": result["details"],
        }


def clean(text: str) -> str:
    """An answer without the speaker's name and surrounding white space, as the original reads it."""
    return text.replace("Assistant:", "").strip()


def look_up(objects: Sequence[str], vocabulary: Vocabulary) -> list[Mention]:
    """The mentions among different strings: those that are words of the vocabulary exactly."""
    by_word = vocabulary.categories_by_word
    kept = drop_toilet_seats([(word, index) for index, word in enumerate(objects)])
    return [Mention(word, by_word[word], index) for word, index in kept if word in by_word]


def _objects(answer: Answer) -> list[str]:
    """The strings that an extractor found in an answer.

    Raises:
        SourceError: the answer has no list of strings ``objs``.
    """
    objects = answer.extra.get("objs")
    if not isinstance(objects, list) or not all(isinstance(each, str) for each in objects):
        raise SourceError(
            f"{answer.where}: 'objs' is no list of texts",
            "add the objects that an extractor found in each answer, or use --extractor words",
        )
    return objects


def _questions(path: Path) -> Iterator[Question]:
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            question = _question(line, place)
            if question.question_id in seen:
                raise SourceError(f"{place}: image {question.question_id} occurs again", "download the file again")
            seen.add(question.question_id)
            yield question


def _question(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
        image, text, content = str(record["image_id"]), str(record["question"]), record["image"]
        data = base64.b64decode(content, validate=True)
    except KeyError as error:
        raise SourceError(f"{place} has no {error}", "download the file again") from error
    except (ValueError, TypeError, binascii.Error) as error:
        raise SourceError(f"{place} is not valid: {error}", "download the file again") from error
    return Question(image, {"id": image, "uri": None, "bytes": data, "sha256": None}, text)

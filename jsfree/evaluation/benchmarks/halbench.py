"""Object HalBench: object hallucination in descriptions of 300 COCO images (Yu et al. 2023, arXiv 2312.00849).

As CHAIR with a cleaned vocabulary, but objects are extracted from the answer instead of looked up word by word, and an
object counts once an answer and word. Numbers of different extractors do not compare; the published one
(gpt-3.5-turbo-0613) is retired, and its prompt is not used here.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite
from jsfree.evaluation.benchmarks.coco import REQUIREMENTS, read_annotations, require_images
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.judged import error_rows, prompt
from jsfree.evaluation.benchmarks.measuring import Measure, complement, harmonic_mean, ratio
from jsfree.evaluation.benchmarks.nouns import NounLemmas
from jsfree.evaluation.benchmarks.objects import CheckedAnswer, overall_metrics
from jsfree.evaluation.benchmarks.phrases import objects_in, parse_list
from jsfree.evaluation.benchmarks.tokens import tokenize
from jsfree.evaluation.benchmarks.vocabulary import Mention, Reading, Vocabulary, drop_toilet_seats
from jsfree.evaluation.metrics import Metric
from jsfree.judge.judging import Judge
from jsfree.judge.requests import JudgeRequest
from jsfree.schemas import ErrorRow

Extractor = Literal["words", "objects", "judge"]
EXTRACTORS: dict[Extractor, str] = {
    "words": "every object word of the answer, repeats included; no judge",
    "objects": "the strings of the key 'objs' of each answer, found by an extractor of the user's",
    "judge": "the phrases that a language model lists, reduced to their nouns by a rule",
}
SHORT = 3
"""Answers of so many words or fewer name no object, as in the original, and are not sent to the judge."""
QUESTIONS = Requirement(
    "obj_halbench_300_with_image.jsonl",
    "300 questions with their images (63,537,348 bytes, sha256 e89c705f...)",
    "eval/data of the repository RLHF-V/RLHF-V or RLHF-V/RLAIF-V",
    optional=True,
    for_questions=True,
)
OBJECTS_PROMPT = "halbench_objects"
DESCRIBE = "Describe the image."
"""The question in requests to the judge about images that the question file lacks."""
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
        judge: lists the objects of answers, for the extractor ``judge``.
    """

    vocabulary: Vocabulary
    extractor: Extractor = "words"
    beams: int = 3
    judge: Judge | None = None

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
    def judges(self) -> tuple[Judge, ...]:
        return () if self.judge is None else (self.judge,)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Extractor, its prompt and the vocabulary."""
        prompts = [prompt(OBJECTS_PROMPT).as_json()] if self.judge else []
        return {
            "extractor": self.extractor,
            "extractor_is": EXTRACTORS[self.extractor],
            "prompts": prompts,
            "vocabulary": self.vocabulary.name,
            "vocabulary_hash": self.vocabulary.fingerprint,
        }

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions of the published file, with their images.

        Raises:
            SourceError: the file is missing, a line is wrong, or the vocabulary lacks an annotated category.
        """
        questions = list(_questions(QUESTIONS.require(data)))
        read_annotations(data, {each.image["id"] for each in questions}).require_categories(self.vocabulary)
        return questions

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Compare the objects of each answer with those of its image."""
        answers = [replace(answer, text=clean(answer.text)) for answer in answers]
        where = {answer.image_id: answer.where for answer in reversed(answers)}
        annotations = read_annotations(data, where.keys())
        require_images(annotations, where, data)
        lemmas = NounLemmas(self.vocabulary.single_words)

        def words(text: str) -> Reading:
            return self.vocabulary.read([lemmas(token) for token in tokenize(text)])

        truth = annotations.truth(self.vocabulary, lambda caption: words(caption).categories)
        if self.extractor == "words":
            readings = [(answer, words(answer.text)) for answer in answers]
            checked = [CheckedAnswer(one, read.mentions, truth[one.image_id], read.words) for one, read in readings]
            return _measured(checked)
        found: Sequence[list[str] | None]
        errors: list[ErrorRow] = []
        if self.judge is None:
            found = [_objects(answer) for answer in answers]
        else:
            found, errors = self._ask(self.judge, answers, self._questions_asked(data))
        checked = [
            CheckedAnswer(answer, look_up(objects, self.vocabulary), truth[answer.image_id], objects)
            for answer, named in zip(answers, found, strict=True)
            if named is not None
            for objects in [list(dict.fromkeys(named))]
        ]
        return replace(_measured(checked), errors=errors, judge=self._judge_record(), notes=self._notes())

    def _ask(
        self, judge: Judge, answers: Sequence[Answer], questions: Mapping[str, str]
    ) -> tuple[list[list[str] | None], list[ErrorRow]]:
        """The objects in each answer, None where the judge listed none; and the error rows of these."""
        template = prompt(OBJECTS_PROMPT)
        long = {number: answer for number, answer in enumerate(answers) if len(answer.text.split()) > SHORT}
        asked = (
            JudgeRequest(
                answer.question_id,
                template.fill(question=questions.get(answer.image_id, DESCRIBE), answer=answer.text),
            )
            for answer in long.values()
        )
        judgements = judge.ask(asked, parse_list)
        listed = {number: each.value for number, each in zip(long, judgements, strict=True)}
        phrases = [listed.get(number, []) for number in range(len(answers))]
        return [None if each is None else objects_in(each, self.vocabulary) for each in phrases], error_rows(judgements)

    def _questions_asked(self, data: DataPath) -> dict[str, str]:
        """The question about each image; none without the question file."""
        path = QUESTIONS.find(data)
        return {} if path is None else {each.image["id"]: each.prompt for each in _questions(path)}

    def _judge_record(self) -> dict[str, Any] | None:
        return None if self.judge is None else self.judge.record(prompt(OBJECTS_PROMPT))

    def _notes(self) -> list[str]:
        if self.judge is None:
            return []
        return [
            f"Objects were listed by {self.judge.settings.model}, not by gpt-3.5-turbo-0613 with the published prompt.",
            "Phrases were reduced to nouns by a rule instead of spaCy's tagger.",
            f"Judge, in this command so far: {self.judge.summary()}.",
        ]

    def details_document(self, result: Mapping[str, Any]) -> Any:
        """The layout of the original's ``hall_*.json``."""
        totals = {name: result["sums"].get(column, 0) for name, column in _ORIGINAL_SUMS.items()}
        return {
            "overall_metrics": overall_metrics(result, _ORIGINAL_NAMES) | totals,
            "sentences": result["details"],
        }


def _measured(checked: Sequence[CheckedAnswer]) -> Measured:
    details = [each.as_json() | {"objs": list(each.words)} for each in checked]
    return Measured([each.count() for each in checked], details)


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
            f"{answer.where}: 'objs' is not a list of strings",
            "add the objects that an extractor found in each answer, or use --extractor words",
        )
    return objects


def _questions(path: DataPath) -> Iterator[Question]:
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
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

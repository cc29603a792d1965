"""CHAIR: object hallucination in captions of COCO images (Rohrbach et al. 2018, arXiv 1809.02156).

An object is hallucinated if it is neither annotated in the image nor named in a reference caption. Three
implementations are in use, which differ in how they recognise words (``STACKS``). Published numbers of image-language
models are mostly those of ``lemmas``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Suite
from jsfree.evaluation.benchmarks.coco import (
    IMAGES,
    PROMPT_FILE,
    REQUIREMENTS,
    read_annotations,
    require_images,
    validation_images,
)
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.measuring import Measure, ratio
from jsfree.evaluation.benchmarks.nouns import CaptionLemmas, singular
from jsfree.evaluation.benchmarks.objects import CheckedAnswer, overall_metrics
from jsfree.evaluation.benchmarks.tokens import tokenize
from jsfree.evaluation.benchmarks.vocabulary import Reading, Vocabulary
from jsfree.evaluation.metrics import Metric

Stack = Literal["original", "lemmas", "lmms-eval"]
STACKS: dict[Stack, str] = {
    "original": "LisaAnne/Hallucination: singular by rules; misses every single bus",
    "lemmas": "the port that OPERA and others use: WordNet lemmas; takes skiing for skis, misses men and vases",
    "lmms-eval": "coco_cap_chair of lmms-eval: words as lemmas",
}
PROMPT = "Please describe this image in detail."
"""The prompt of lmms-eval. Captions of other prompts or lengths do not compare."""


@dataclass(frozen=True)
class Chair(Suite):
    """CHAIR with a vocabulary, by one of three implementations."""

    vocabulary: Vocabulary
    stack: Stack = "original"

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "CHAIR"
    source: ClassVar[str] = "Rohrbach et al. 2018, arXiv 1809.02156"
    has_coco_ids = True
    folders = ("chair", "coco")
    requirements = (*REQUIREMENTS, IMAGES, PROMPT_FILE)
    measures = (
        Measure(
            Metric("CHAIRs", "CHAIRs", "captions with a hallucinated object", "lower"),
            ratio("hallucinated_responses", "responses"),
        ),
        Measure(
            Metric("CHAIRi", "CHAIRi", "mentions of objects that are hallucinated", "lower"),
            ratio("hallucinated", "mentions"),
        ),
        Measure(
            Metric("recall", "Recall", "objects of the images that are named", "higher"), ratio("correct", "truth")
        ),
        Measure(
            Metric("tokens", "Tokens", "per caption, pairs of words merged", None, 1.0, "", 1),
            ratio("words", "responses"),
        ),
    )
    generation = Generation(max_new_tokens=512)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Stack, vocabulary and prompt."""
        return {
            "stack": self.stack,
            "stack_is": STACKS[self.stack],
            "vocabulary": self.vocabulary.name,
            "vocabulary_hash": self.vocabulary.fingerprint,
        }

    @cached_property
    def _base_forms(self) -> Callable[[Sequence[str]], list[str]]:
        if self.stack == "original":
            return lambda words: [singular(word) for word in words]
        return CaptionLemmas(self.vocabulary.single_words)

    def read(self, caption: str) -> Reading:
        """The mentions in a caption."""
        return self.vocabulary.read(self._base_forms(tokenize(caption)))

    def questions(self, data: DataPath) -> Sequence[Question]:
        """The request to describe each validation image whose file is in the data folder.

        Raises:
            SourceError: a file is missing or wrong, or the vocabulary lacks an annotated category.
        """
        path = PROMPT_FILE.find(data)
        prompt = PROMPT if path is None else path.read_text(encoding="utf-8").strip()
        questions = [Question(image["id"], image, prompt) for image in validation_images(data)]
        read_annotations(data, {each.image["id"] for each in questions}).require_categories(self.vocabulary)
        return questions

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Compare the mentions of each caption with the objects of its image; an image may have several captions."""
        where = {answer.image_id: answer.where for answer in reversed(answers)}
        annotations = read_annotations(data, where.keys())
        require_images(annotations, where, data)
        truth = annotations.truth(self.vocabulary, lambda caption: self.read(caption).categories)
        checked = [self._check(answer, truth[answer.image_id]) for answer in answers]
        return Measured([each.count() for each in checked], [each.as_json() for each in checked], notes=self._notes())

    def _check(self, answer: Answer, truth: frozenset[str]) -> CheckedAnswer:
        reading = self.read(answer.text)
        return CheckedAnswer(answer, reading.mentions, truth, reading.words)

    def _notes(self) -> list[str]:
        if self.stack == "original":
            return []
        return [
            "Parts of speech are recognised by a rule instead of NLTK's tagger: 'is skiing' is a verb, 'skiing' a noun."
        ]

    def details_document(self, result: Mapping[str, Any]) -> Any:
        """The layout of the original's ``hallucination_words_*.json``."""
        names = {"CHAIRs": "CHAIRs", "CHAIRi": "CHAIRi", "Recall": "recall", "Len": "tokens"}
        return {"overall_metrics": overall_metrics(result, names), "sentences": result["details"]}

"""What a benchmark is: the files it needs, its questions, and how it scores answers.

    data folder -> questions -> (a captioner, or a file of answers) -> answers -> count rows, details -> result

A suite is an instance of a subclass of ``Suite``. Its options (a vocabulary, a judge, a scoring) are arguments of its
constructor, so that a suite that exists can be run, and its ``protocol`` says completely what was done.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure
from jsfree.judge.judging import Judge
from jsfree.schemas import ErrorRow, ImageRef


@dataclass(frozen=True)
class Requirement:
    """A file or folder that a suite reads.

    Args:
        name: its path relative to the data folder; alternatives are separated by ``|``.
        meaning: what it holds.
        origin: where users get it.
        optional: whether answers can be scored without it.
        for_questions: whether it is needed to ask the questions, though not to score answers.
    """

    name: str
    meaning: str
    origin: str
    optional: bool = False
    for_questions: bool = False

    def find(self, data: DataPath) -> DataPath | None:
        """The first alternative that exists in the data folder; None if there is none."""
        return next((path for name in self.name.split("|") if (path := data / name).exists()), None)

    def require(self, data: DataPath) -> DataPath:
        """The first alternative that exists in the data folder.

        Raises:
            SourceError: there is none.
        """
        path = self.find(data)
        if path is None:
            names = " or ".join(self.name.split("|"))
            raise SourceError(f"{data} has no {names} ({self.meaning})", f"get it from {self.origin}")
        return path


@dataclass(frozen=True)
class Generation:
    """The decoding that a protocol prescribes.

    Greedy decoding of one view of the image with one beam goes through the project's engine, several beams through
    ``generate`` of transformers. ``without_image``: the prompts alone are answered, and the result has the
    log-probabilities of the first model's answers under each model.
    """

    max_new_tokens: int
    temperature: float = 0.0
    beams: int = 1
    without_image: bool = False


@dataclass(frozen=True)
class Question:
    """One prompt about one image; ``image["id"]`` is the unit of intervals and comparisons."""

    question_id: str
    image: ImageRef
    prompt: str


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Args:
        question_id: the question; in files of other programs it may be missing, and is then the image's id.
        image_id: the image, as in the suite's data.
        text: the answer.
        extra: further keys of the answer's line in a file, such as ``objs``.
        where: file and line of an answer that was read from a file, for messages.
    """

    question_id: str
    image_id: str
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Measured:
    """What a suite found in the answers of one model.

    Args:
        rows: counts of every scored answer; the suite's formulas refer to their columns.
        details: one JSON object an answer, for the result file.
        errors: answers that could not be scored.
        judge: the judge's description (model, revision, temperature, prompt hash, tokens, cost); None without one.
        notes: deviations from the published protocol, in sentences.
    """

    rows: Sequence[CountRow]
    details: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[ErrorRow] = ()
    judge: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()


class Suite(ABC):
    """A benchmark."""

    name: ClassVar[str]
    """Its name on the command line and in file names."""
    title: ClassVar[str]
    """What readers see."""
    source: ClassVar[str]
    """The publication, and the code whose results are reproduced."""
    requirements: ClassVar[tuple[Requirement, ...]]
    """The files it reads."""
    measures: ClassVar[tuple[Measure, ...]]
    """Its metrics, the most important first."""
    describes_images: ClassVar[bool] = True
    """Whether answers are captions; their length and repetition are then reported too."""
    measures_variety: ClassVar[bool] = False
    """Whether the variety of answers is reported though they are no captions."""
    has_coco_ids: ClassVar[bool] = False
    """Whether ids of images are COCO's numbers."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Subfolders of a folder with the files of several suites, in which this one's are looked for."""

    @property
    def requires_own_folder(self) -> bool:
        """Whether any folder looks like its data, so that it is one of "all" suites only with a folder of its own."""
        return False

    def folder(self, data: DataPath) -> DataPath:
        """The folder of this suite's files: one of ``folders`` in ``data`` if there is one, otherwise ``data``."""
        return next((data / name for name in self.folders if (data / name).is_dir()), data)

    @property
    @abstractmethod
    def generation(self) -> Generation:
        """The decoding that its protocol prescribes."""

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The judges that it asks."""
        return ()

    @property
    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """Everything that distinguishes this way of scoring from others of the same suite, for the result file."""

    @abstractmethod
    def questions(self, data: DataPath) -> Sequence[Question]:
        """The questions, in the order of the suite's data.

        Raises:
            SourceError: a file is missing or wrong; the message names file, line and key.
        """

    def known_questions(self, data: DataPath) -> Sequence[Question]:
        """The questions, or none if the data folder lacks a file that only asking needs.

        Raises:
            SourceError: another file is missing or wrong.
        """
        for_questions = [requirement for requirement in self.requirements if requirement.for_questions]
        return self.questions(data) if all(requirement.find(data) for requirement in for_questions) else ()

    def as_answers(self, data: DataPath, replies: Sequence[Answer]) -> Sequence[Answer]:  # noqa: ARG002
        """The replies of a model that was asked here in the form that the suite's files of answers have.

        Raises:
            SourceError: a file is missing or wrong.
        """
        return replies

    @abstractmethod
    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Score answers; those of images or questions that the data do not have are errors.

        Raises:
            SourceError: a file is missing or wrong, or an answer refers to nothing in it.
        """

    def details_document(self, result: Mapping[str, Any]) -> Any:
        """The content of ``--details``: the layout of the original program where it writes a file.

        Args:
            result: the content of the suite's result file.
        """
        return result["details"]


def prompts_hash(prompts: Sequence[str]) -> str:
    """Short hash of the distinct prompts of a suite, in sorted order."""
    return hashlib.sha256("\0".join(sorted(set(prompts))).encode()).hexdigest()[:16]

"""IC: a judge that sees the image analyses and scores the precision and recall of a caption (arXiv 2411.17760).

The protocol of the paper: an analysis of what the caption says, an analysis of what it leaves out, and from each a
score from 1 to 10. Such scores saturate, so a claim-level form is measured beside it: the judge lists the elements that
the caption states, with whether the image shows them, and the elements that the image shows, with whether the caption
states them.

<data>/<category>/<image file>
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.agreement import with_second_judge
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Requirement, Suite, prompts_hash
from jsfree.evaluation.benchmarks.data_paths import DataPath, data_path
from jsfree.evaluation.benchmarks.judged import error_rows, prompt, unknown_row
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, harmonic_mean, ratio
from jsfree.evaluation.metrics import Metric
from jsfree.judge.judging import Judge
from jsfree.judge.prompts import Prompt
from jsfree.judge.replies import ReplyError, json_object
from jsfree.judge.requests import JudgeRequest
from jsfree.schemas import ErrorRow

PROMPT = "Describe image in detail."
BEST = 10
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
SCORE = re.compile(r"\bscore:\s*(\d+)", re.IGNORECASE)
ASPECTS = ("precision", "recall")
Form = Literal["scores", "claims", "both"]


class Claims(NamedTuple):
    """What a judge found in a caption: elements that it states, and elements of the image."""

    said: tuple[tuple[str, bool], ...]
    """Each with whether the image shows it."""
    seen: tuple[tuple[str, bool], ...]
    """Each with whether the caption states it."""


def parse_score(reply: str) -> int:
    """The last number after "Score:".

    Raises:
        ReplyError: there is none from 1 to 10.
    """
    found = [int(number) for number in SCORE.findall(reply)]
    if not found or not 1 <= found[-1] <= BEST:
        raise ReplyError(f"no 'Score: n' with n from 1 to {BEST}")
    return found[-1]


def parse_analysis(reply: str) -> str:
    """The text of an analysis.

    Raises:
        ReplyError: it is empty.
    """
    if not reply.strip():
        raise ReplyError("the analysis is empty")
    return reply.strip()


def parse_claims(reply: str) -> Claims:
    """Read ``{"said": [{"element", "shown"}], "seen": [{"element", "stated"}]}``.

    Raises:
        ReplyError: the object or a key is missing, or has another type.
    """
    value = json_object(reply)
    return Claims(_elements(value, "said", "shown"), _elements(value, "seen", "stated"))


def _elements(value: Mapping[str, Any], key: str, flag: str) -> tuple[tuple[str, bool], ...]:
    items = value.get(key)
    if not isinstance(items, list):
        raise ReplyError(f"{key!r} is not a list")
    for number, item in enumerate(items):
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("element"), str)
            or not isinstance(item.get(flag), bool)
        ):
            raise ReplyError(f"{key}[{number}] is not an object with a string 'element' and a boolean {flag!r}")
    return tuple((item["element"], item[flag]) for item in items)


def _measures() -> tuple[Measure, ...]:
    precision, recall = ratio("precision_score", "precision_scored"), ratio("recall_score", "recall_scored")
    right, complete = ratio("said_shown", "said"), ratio("seen_stated", "seen")
    return (
        Measure(Metric("ic_precision", "IC precision", "mean score, 1 to 10", "higher", 1.0, "", 2), precision),
        Measure(Metric("ic_recall", "IC recall", "mean score, 1 to 10", "higher", 1.0, "", 2), recall),
        Measure(
            Metric("ic_f1", "IC F1", "harmonic mean of the mean scores", "higher", 1.0, "", 2),
            harmonic_mean(precision, recall),
        ),
        Measure(Metric("claim_precision", "Claim precision", "stated elements that the image shows", "higher"), right),
        Measure(Metric("claim_recall", "Claim recall", "elements of the image that are stated", "higher"), complete),
        Measure(
            Metric("claim_f1", "Claim F1", "harmonic mean of claim precision and recall", "higher"),
            harmonic_mean(right, complete),
        ),
        Measure(Metric("claims", "Claims", "elements stated, per caption", None, 1.0, "", 1), ratio("said", "claimed")),
    )


@dataclass(frozen=True)
class IC(Suite):
    """IC with a judge that sees images.

    Args:
        judge: analyses and scores.
        form: the paper's scores, claims, or both.
        second: another judge, whose agreement with the first is reported.
        categories: numbers of images by category, which the data must have; None: all images of all folders.
    """

    judge: Judge
    form: Form = "both"
    second: Judge | None = None
    categories: Mapping[str, int] | None = None

    name: ClassVar[str] = "ic"
    title: ClassVar[str] = "IC"
    source: ClassVar[str] = "arXiv 2411.17760; its images and prompts are not public"
    folders: ClassVar[tuple[str, ...]] = ("ic",)
    requirements: ClassVar[tuple[Requirement, ...]] = (
        Requirement(".", "folders of images, one for each category", "your own images"),
    )
    measures: ClassVar[tuple[Measure, ...]] = _measures()
    generation: ClassVar[Generation] = Generation(max_new_tokens=1024)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The judge's prompts that the form uses."""
        scores = (
            *(prompt(f"ic_{aspect}_analysis") for aspect in ASPECTS),
            *(prompt(f"ic_{aspect}_score") for aspect in ASPECTS),
        )
        claims = (prompt("ic_claims"),)
        return {"scores": scores, "claims": claims, "both": (*scores, *claims)}[self.form]

    @property
    def judges(self) -> tuple[Judge, ...]:
        return (self.judge,) if self.second is None else (self.judge, self.second)

    @property
    def requires_own_folder(self) -> bool:
        """Unless the categories are declared: every folder of images looks like one."""
        return self.categories is None

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The form, the scale and the prompts."""
        return {
            "form": self.form,
            "scale": [1, BEST],
            "f1": "harmonic mean of the means",
            "categories": None if self.categories is None else dict(self.categories),
            "prompts": [each.as_json() for each in self.prompts],
            "prompts_hash": prompts_hash([PROMPT]),
        }

    def questions(self, data: DataPath) -> Sequence[Question]:
        """One question for each image; its id is ``<category>/<file>``.

        Raises:
            SourceError: there are no folders with images, or fewer images than ``categories`` declares.
        """
        entries = data.iterdir() if data.is_dir() else ()
        names = self.categories or sorted(each.name for each in entries if each.is_dir())
        found = [(f"{name}/{path.name}", path) for name in names for path in self._images(data / name)]
        if not found:
            raise SourceError(
                f"{data} has no images in folders of categories", "create <category>/<image>.png, .jpg, .gif or .webp"
            )
        return [
            Question(name, {"id": name, "uri": str(path), "bytes": None, "sha256": None}, PROMPT)
            for name, path in found
        ]

    def _images(self, folder: DataPath) -> list[DataPath]:
        """The images of a category, by name; as many as are declared.

        Raises:
            SourceError: there are fewer.
        """
        paths = folder.iterdir() if folder.is_dir() else ()
        images = sorted((path for path in paths if path.name.lower().endswith(SUFFIXES)), key=lambda path: path.name)
        count = (self.categories or {}).get(folder.name)
        if count is not None and len(images) < count:
            raise SourceError(
                f"{folder} has {len(images)} images, and {count} are declared", "add images, or correct --categories"
            )
        return images[:count]

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        """Let the judge analyse and score the captions.

        Raises:
            SourceError: an image cannot be read.
            JudgeError: the judge stopped; run it again, its replies are stored.
        """
        measured = self._score(data, answers)
        if self.second is None:
            return measured
        return with_second_judge(measured, replace(self, judge=self.second, second=None).score(data, answers))

    def _score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:
        paths = {question.image["id"]: data_path(str(question.image["uri"])) for question in self.questions(data)}
        known = [answer for answer in answers if answer.image_id in paths]
        counts: dict[str, dict[str, float]] = {answer.question_id: {} for answer in known}
        details: dict[str, dict[str, Any]] = {answer.question_id: {} for answer in known}
        errors = [unknown_row(each.question_id, each.where) for each in answers if each.image_id not in paths]
        if self.form != "claims":
            for aspect in ASPECTS:
                errors += self._score_aspect(aspect, known, paths, counts, details)
        if self.form != "scores":
            errors += self._list_claims(known, paths, counts, details)
        return Measured(
            [CountRow(each.image_id, counts[each.question_id], each.image_id.partition("/")[0]) for each in known],
            [{"question_id": name, **detail} for name, detail in details.items()],
            errors,
            self.judge.record(*self.prompts),
            [
                f"Judged by {self.judge.settings.model}: scores of other judges, prompts or images do not compare.",
                f"Judge, in this command so far: {self.judge.summary()}.",
            ],
        )

    def _score_aspect(
        self,
        aspect: str,
        answers: Sequence[Answer],
        paths: Mapping[str, DataPath],
        counts: Mapping[str, dict[str, float]],
        details: Mapping[str, dict[str, Any]],
    ) -> list[ErrorRow]:
        """Analyse and score one aspect of all captions, add the scores to ``counts``, and return the error rows."""
        analysis_prompt, score_prompt = prompt(f"ic_{aspect}_analysis"), prompt(f"ic_{aspect}_score")
        analyses = self.judge.ask(_about_images(answers, paths, analysis_prompt, aspect), parse_analysis)
        analysed = [(one, each.value) for one, each in zip(answers, analyses, strict=True) if each.value is not None]
        requests = (
            JudgeRequest(f"{one.question_id}#{aspect}", score_prompt.fill(analysis=text)) for one, text in analysed
        )
        scores = self.judge.ask(requests, parse_score)
        for (answer, analysis), judgement in zip(analysed, scores, strict=True):
            details[answer.question_id][aspect] = {"score": judgement.value, "analysis": analysis}
            if judgement.value is not None:
                counts[answer.question_id] |= {f"{aspect}_score": float(judgement.value), f"{aspect}_scored": 1.0}
        return [*error_rows(analyses), *error_rows(scores)]

    def _list_claims(
        self,
        answers: Sequence[Answer],
        paths: Mapping[str, DataPath],
        counts: Mapping[str, dict[str, float]],
        details: Mapping[str, dict[str, Any]],
    ) -> list[ErrorRow]:
        """Let the judge list elements, add their numbers to ``counts``, and return the error rows."""
        judgements = self.judge.ask(_about_images(answers, paths, prompt("ic_claims"), "claims"), parse_claims)
        for answer, judgement in zip(answers, judgements, strict=True):
            if judgement.value is None:
                continue
            said, seen = judgement.value
            details[answer.question_id]["claims"] = {
                "said": [{"element": name, "shown": flag} for name, flag in said],
                "seen": [{"element": name, "stated": flag} for name, flag in seen],
            }
            counts[answer.question_id] |= {
                "claimed": 1.0,
                "said": float(len(said)),
                "said_shown": float(sum(flag for _, flag in said)),
                "seen": float(len(seen)),
                "seen_stated": float(sum(flag for _, flag in seen)),
            }
        return error_rows(judgements)


def read_categories(path: str) -> dict[str, int]:
    """Read a YAML file with the number of images of each category.

    Raises:
        ConfigError: the file cannot be read, or a count is not a positive integer.
    """
    try:
        content = data_path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "correct --categories") from error
    categories = read_mapping(content, path)
    for name, count in categories.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{path}: {name!r} is {count!r}", "write the number of its images")
    return categories


def _about_images(
    answers: Iterable[Answer], paths: Mapping[str, DataPath], filled: Prompt, aspect: str
) -> Iterator[JudgeRequest]:
    for answer in answers:
        path = paths[answer.image_id]
        try:
            image = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", "repair or remove it") from error
        yield JudgeRequest(f"{answer.question_id}#{aspect}", filled.fill(caption=answer.text), (image,))

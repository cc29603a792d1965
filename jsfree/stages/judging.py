"""Scores sentences by asking the captioner itself whether they are true (``score.judge: captioner``).

A baseline for CLIP: the judge of RLAIF-V (arXiv 2405.17220) rates claims one by one with a larger model; here it is the
seed m0. The score of a sentence is p(yes) / (p(yes) + p(no)), both for the token after the question
``score.question``. The questions about an image follow one shared prefix, which ends where they begin to differ, so the
image is encoded and prefilled once for many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from jsfree.dpo.batching import PairBatch, pack
from jsfree.dpo.policy import PairModel
from jsfree.errors import ModelError
from jsfree.models.families.base import ImageInputs, Prompt
from jsfree.models.loading import DTYPES, Captioner
from jsfree.models.prompts import conditional_prompt, tokenize
from jsfree.schemas import HIGH, LOW, Pair, Role, Sample, StageOutput, error_row
from jsfree.stages.captioning import ImageReader, captioner_of
from jsfree.stages.scoring import named_scores, no_sentence_error, scored_pair, texts_by_role
from jsfree.stages.sentences import sentences

if TYPE_CHECKING:
    from jsfree.config import RunConfig

SENTENCE = "{sentence}"
"""Placeholder of the sentence in ``score.question``."""
YES, NO = "Yes", "No"
QUESTION_TOKENS = 512
"""Maximum tokens of questions after one prefix; further questions about the image follow a copy of it."""
POSITIONS_AT_ONCE = 8192
"""Maximum positions of a forward pass, padding included; at least one row is processed."""


class AnswerIds(NamedTuple):
    """The tokens with which the two answers begin."""

    yes: int
    no: int


def answer_ids(captioner: Captioner, question: str) -> AnswerIds:
    """Find the tokens of the answers "Yes" and "No" after a question.

    Raises:
        ModelError: an answer is not a single token of its own, or both are the same token.
    """
    rendered = conditional_prompt(captioner.processor, question, captioner.family.placeholder(captioner.processor))
    space = "" if rendered[-1:].isspace() else " "
    tokenizer = captioner.processor.tokenizer
    prompt = tokenize(captioner.processor, rendered)
    found = []
    for answer in (YES, NO):
        ids = tokenize(captioner.processor, f"{rendered}{space}{answer}")
        if len(ids) != len(prompt) + 1 or ids[:-1] != prompt or ids[-1] == tokenizer.unk_token_id:
            raise ModelError(
                f"the captioner's tokenizer has no single token for the answer {answer!r} after the question"
                f" {question!r} (score.question)",
                "set 'score.judge: clip'",
            )
        found.append(ids[-1])
    if found[0] == found[1]:
        raise ModelError(
            f"the captioner's tokenizer has the same token for {YES!r} and {NO!r}", "set 'score.judge: clip'"
        )
    return AnswerIds(*found)


@dataclass(frozen=True)
class Questions:
    """Questions about one image in one row: the shared prefix, and the other tokens of each question."""

    sample_id: str
    image: ImageInputs
    prefix: Prompt
    endings: dict[str, list[int]]
    """By the sentence asked about."""

    @property
    def length(self) -> int:
        """Positions of the row, with one for an answer to each question."""
        return len(self.prefix) + sum(len(ending) + 1 for ending in self.endings.values())


class CaptionerJudge:
    """A captioner that judges sentences, on one device. A call scores a batch of pairs."""

    def __init__(self, config: RunConfig, model_ref: str, device: str = "cpu") -> None:
        """Load the captioner ``model_ref``.

        Raises:
            ModelError: the model cannot be loaded, or its tokenizer has no tokens for the answers.
        """
        self._config = config
        self._captioner = captioner_of(config, model_ref, device)
        self._answers = answer_ids(self._captioner, config.score.question.replace(SENTENCE, "It is true."))
        self._reader = ImageReader(self._captioner, config.generate.resources.cpus)
        self._model = PairModel(self._captioner.model)

    def __call__(self, pairs: Sequence[Pair]) -> StageOutput:
        """Score the captions of each pair: rows of ``schemas.SCORED``, as ``ClipScorer`` but with scores in [0, 1].

        A pair becomes an error row if its image cannot be used (kinds of ``load_image``) or a caption of the two has no
        sentence (``no_sentence``). ``tokens`` counts the positions that the language model evaluates, without padding.
        """
        output = StageOutput()
        usable: list[tuple[Pair, dict[Role, list[str]]]] = []

        def rows() -> Iterator[Questions]:
            for sample, image in self._reader.read(pairs, self._config.source, "scored", output):
                pair, of_roles = _split(sample)
                empty = next((role for role in (LOW, HIGH) if not of_roles[role]), None)
                if empty is not None:
                    error = no_sentence_error(pair, empty)
                    output.errors.append(error_row(pair["sample_id"], "scored", error))
                    continue
                usable.append((pair, of_roles))
                distinct = dict.fromkeys(sentence for of_role in of_roles.values() for sentence in of_role)
                yield from self._questions(pair, image, list(distinct))

        scores: dict[str, dict[str, float]] = {}
        for batch in batches(rows(), POSITIONS_AT_ONCE):
            output.tokens += sum(row.length for row in batch)
            for row, found in zip(batch, self._judge(batch), strict=True):
                scores.setdefault(row.sample_id, {}).update(zip(row.endings, found, strict=True))
        for pair, of_roles in usable:
            own = scores[pair["sample_id"]]
            by_role = {role: named_scores(of, [own[each] for each in of]) for role, of in of_roles.items()}
            output.rows.append(scored_pair(pair, by_role))
        return output

    def _questions(self, pair: Pair, image: ImageInputs, about: Sequence[str]) -> Iterator[Questions]:
        """Lay the questions about an image out in as few rows as ``QUESTION_TOKENS`` allows."""
        template = self._config.score.question
        texts = [template.replace(SENTENCE, self._without_vision_tokens(each)) for each in about]
        prompts = [self._captioner.prompt_ids(text, image) for text in texts]
        shared = common_prefix(prompts)
        prefix = self._captioner.prompt(texts[0], image).first(shared)
        endings: dict[str, list[int]] = {}
        tokens = 0
        for sentence, prompt in zip(about, prompts, strict=True):
            ending = prompt[shared:]
            if endings and tokens + len(ending) + 1 > QUESTION_TOKENS:
                yield Questions(pair["sample_id"], image, prefix, endings)
                endings, tokens = {}, 0
            endings[sentence] = ending
            tokens += len(ending) + 1
        yield Questions(pair["sample_id"], image, prefix, endings)

    def _without_vision_tokens(self, sentence: str) -> str:
        """A sentence without tokens that stand for an image, which an imported caption may spell out."""
        for token in self._captioner.vision_tokens:
            sentence = sentence.replace(token, "")
        return sentence

    @torch.inference_mode()
    def _judge(self, rows: Sequence[Questions]) -> list[list[float]]:
        """Scores of the questions of each row."""
        endings = [
            {f"{number}": [*ending, self._answers.yes] for number, ending in enumerate(row.endings.values())}
            for row in rows
        ]
        batch = pack([row.prefix for row in rows], endings, [row.image for row in rows])
        answers, order = self._predict_answers(batch)
        logps_T = self._model.token_logps(answers.to(self._captioner.device, DTYPES[self._config.captioner.dtype]))
        yes_Q, no_Q = logps_T.double().cpu().chunk(2)
        found: list[list[float]] = [[] for _ in rows]
        for row, score in zip(order, torch.sigmoid(yes_Q - no_Q).tolist(), strict=True):
            found[row].append(score)
        return found

    def _predict_answers(self, batch: PairBatch) -> tuple[PairBatch, list[int]]:
        """The batch with the answers alone as completion tokens, and the row of each question.

        All questions' "yes" come first, then all questions' "no". Questions are in the order of their number in a row.
        """
        lengths = [length for of_role in batch.lengths.values() for length in of_role]
        last_Q = torch.tensor(list(accumulate(lengths))) - 1
        rows_Q, columns_Q = batch.rows_T[last_Q], batch.columns_T[last_Q]
        targets = [answer for answer in self._answers for _ in lengths]
        answers = replace(
            batch, rows_T=rows_Q.repeat(2), columns_T=columns_Q.repeat(2), targets_T=torch.tensor(targets)
        )
        return answers, rows_Q.tolist()


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Number of tokens with which all of ``prompts`` begin."""
    first, last = min(prompts), max(prompts)
    return next((place for place, token in enumerate(first) if token != last[place]), len(first))


def batches(rows: Iterable[Questions], positions: int) -> Iterator[list[Questions]]:
    """Group rows, in order, so that a group takes at most ``positions`` when padded, or has a single row."""
    group: list[Questions] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.length)
        if group and longest * (len(group) + 1) > positions:
            yield group
            group, longest = [], row.length
        group.append(row)
    if group:
        yield group


def _split(sample: Sample) -> tuple[Pair, dict[Role, list[str]]]:
    """A sample that was read as the pair that it is, and the sentences of each of its captions."""
    pair = cast(Pair, sample)
    return pair, {role: sentences(text) for role, text in texts_by_role(pair).items()}

"""Mentions of an answer against the objects of its image: the counts and the output shared by CHAIR and HalBench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.measuring import CountRow
from jsfree.evaluation.benchmarks.vocabulary import Mention


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer with its mentions in order, and the categories that are in the image.

    ``words`` are the words that mentions were looked for in; the index of a mention refers to them as they were before
    pairs were merged.
    """

    answer: Answer
    mentions: Sequence[Mention]
    truth: frozenset[str]
    words: Sequence[str] = ()

    @property
    def hallucinated(self) -> list[Mention]:
        """The mentions of objects that are not in the image."""
        return [mention for mention in self.mentions if mention.category not in self.truth]

    @property
    def correct(self) -> set[str]:
        """The different categories that are named and in the image."""
        return {mention.category for mention in self.mentions} & self.truth

    def count(self) -> CountRow:
        """The counts that metrics are computed from."""
        hallucinated = len(self.hallucinated)
        counts = {
            "responses": 1,
            "responses_with_objects": bool(self.mentions),
            "hallucinated_responses": hallucinated > 0,
            "mentions": len(self.mentions),
            "hallucinated": hallucinated,
            "correct": len(self.correct),
            "truth": len(self.truth),
            "words": len(self.words),
            "blanks": self.answer.text.count(" ") + 1,
        }
        return CountRow(self.answer.image_id, counts)

    def as_json(self) -> dict[str, Any]:
        """The answer in the layout of CHAIR's output file."""
        named, hallucinated = len(self.mentions), self.hallucinated
        return {
            "image_id": original_id(self.answer.image_id),
            "question_id": self.answer.question_id,
            "caption": self.answer.text,
            "mscoco_generated_words": [mention.category for mention in self.mentions],
            "mscoco_gt_words": sorted(self.truth),
            "mscoco_hallucinated_words": [[mention.word, mention.category] for mention in hallucinated],
            "hallucination_idxs": [mention.index for mention in hallucinated],
            "mscoco_words": [[mention.word, mention.category] for mention in self.mentions],
            "words": list(self.words),
            "metrics": {
                "CHAIRs": int(bool(hallucinated)),
                "CHAIRi": len(hallucinated) / named if named else 0.0,
                "recall": len(self.correct) / len(self.truth) if self.truth else 0.0,
            },
        }


def original_id(image_id: str) -> int | str:
    """The id of an image as COCO writes it: a number where it is one."""
    return int(image_id) if image_id.isdecimal() else image_id


def overall_metrics(result: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Values of a result's metrics without intervals, by the original's names; ``names`` maps those to ours."""
    return {original: result["metrics"][name]["value"] for original, name in names.items()}

"""Forms preference pairs and composed captions of an image from its verified sentences.

A caption is scored by what it covers: each claim that it makes for the first time counts by how likely it is true, and
each sentence that makes no new claim counts as a repetition. So a short caption of true sentences scores lower than a
complete one, unlike by the mean cosine.

A composed caption can lack true claims: those that are only made in one sentence with a false one, or that are not
certain enough. Where it then ended, a model would learn to say less. So it has its end token with the probability that
it is complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from jsfree.schemas import HIGH, Composed, Edit, Provenance, Role, ScoredCandidate
from jsfree.stages.candidate_sentences import Sentence, ending, split_candidate
from jsfree.stages.claims import Claims
from jsfree.stages.sentences import refers_back
from jsfree.stages.verification import Verifier, pool

REPETITION = 0.5
"""Penalty of a sentence without a new claim; a certainly true claim counts as much."""
CERTAIN = 1.0
"""Log-odds above which a sentence may be omitted to make a rejected caption."""
Caption = list[Sentence]


@dataclass(frozen=True)
class VerifiedImage:
    """The candidates of an image as sentences, and the log-odds of everything that they claim.

    Attributes:
        captions: sentences of each candidate.
        endings: tokens that end each candidate; empty if it was truncated.
        logits: log-odds that each claim is true.
        probabilities: maps a sentence to its claims and their probabilities (``Claims.probabilities``).
    """

    captions: Mapping[Role, Caption]
    endings: Mapping[Role, tuple[int, ...]]
    logits: Mapping[str, float]
    probabilities: Callable[[Sentence], Mapping[str, float]]
    verifier: Verifier

    @classmethod
    def of(cls, candidates: Sequence[ScoredCandidate], claims: Claims, verifier: Verifier) -> VerifiedImage:
        """Verify the candidates of an image."""
        captions = {each["role"]: split_candidate(each) for each in candidates}
        pooled = pool((sentence for caption in captions.values() for sentence in caption), claims)
        logits = {claim: verifier.logit(*evidence) for claim, evidence in pooled.items()}
        endings = {each["role"]: ending(each) for each in candidates}
        return cls(captions, endings, logits, cache(claims.probabilities), verifier)

    def claims(self, sentence: Sentence) -> tuple[str, ...]:
        """The claims of a sentence, sorted."""
        return tuple(sorted(self.probabilities(sentence)))

    def logit(self, sentence: Sentence) -> float:
        """Log-odds that a sentence is true: those of its least certain claim."""
        return min(self.logits[claim] for claim in self.probabilities(sentence))

    def own_logit(self, sentence: Sentence) -> float:
        """The same, by the evidence of the sentence alone."""
        probability = min(self.probabilities(sentence).values())
        return self.verifier.logit(sentence.cosine, probability)

    def score(self, caption: Caption) -> float:
        """How much of the image a caption covers, minus its false and repeated sentences."""
        total, made = 0.0, set[str]()
        for sentence in caption:
            new = self.probabilities(sentence).keys() - made
            total += sum(_sigmoid(self.logits[claim]) - 0.5 for claim in new) if new else -REPETITION
            made |= new
        return total

    def completeness(self, caption: Caption) -> float:
        """The probability that a caption is complete: that no claim which only other captions make is true."""
        made = {claim for sentence in caption for claim in self.probabilities(sentence)}
        return math.prod(_sigmoid(-logit) for claim, logit in self.logits.items() if claim not in made)

    def best_wordings(self) -> dict[tuple[str, ...], Sentence]:
        """For each combination of claims, the sentence with the most evidence of its own, without a pronoun."""
        best: dict[tuple[str, ...], tuple[float, Sentence]] = {}
        for sentence in self.all_sentences():
            own = self.own_logit(sentence)
            key = self.claims(sentence)
            if not refers_back(sentence.text) and (key not in best or own > best[key][0]):
                best[key] = own, sentence
        return {key: sentence for key, (_, sentence) in best.items()}

    def all_sentences(self) -> Iterator[Sentence]:
        """The sentences of all candidates."""
        for caption in self.captions.values():
            yield from caption


@dataclass(frozen=True)
class FormedPair:
    """A preference pair of an image, and its composed caption.

    Attributes:
        chosen: the candidate that covers most, unedited.
        rejected: sentences of the rejected caption: another candidate, or the chosen one with an error.
        gap: score of ``chosen`` - score of ``rejected``.
        ends: whether the composed caption has its end token.
    """

    chosen: Role
    rejected: Caption
    gap: float
    target: Composed
    ends: bool
    provenance: Provenance

    @property
    def is_edited(self) -> bool:
        """Whether the rejected caption is an edit of the chosen one."""
        return self.provenance["edit"] != "none"


def form_pair(
    image: VerifiedImage, *, edited: float, repeated: float, keep_truncated: bool, rng: np.random.Generator
) -> FormedPair | None:
    """Form the preference pair of an image; None if no candidate can be chosen or rejected, or no sentence is true.

    The candidate with the highest hallucination ratio is rejected if it scores lower than the chosen one. Otherwise,
    and for a share of the images, the rejected caption is an edit of the chosen one.

    Args:
        image: the verified candidates.
        edited: probability of an edit.
        repeated: probability that an edit repeats a sentence instead of omitting one.
        keep_truncated: also use candidates that were truncated.
        rng: generator of the image.
    """
    usable = {role: caption for role, caption in image.captions.items() if keep_truncated or image.endings[role]}
    eligible = {role: caption for role, caption in usable.items() if role != HIGH and caption}
    if not eligible:
        return None
    chosen = max(eligible, key=lambda role: image.score(eligible[role]))
    wants_edit, wants_repetition = rng.random() < edited, rng.random() < repeated
    target, ends = compose(image, eligible, rng)
    if not target["text"]:
        return None
    score = image.score(eligible[chosen])
    high = usable.get(HIGH)
    if not wants_edit and high and image.score(high) < score:
        provenance = Provenance(chosen=chosen, rejected=HIGH, edit="none", sentence="")
        return FormedPair(chosen, high, score - image.score(high), target, ends, provenance)
    edits = [_repeat, _omit] if wants_repetition else [_omit, _repeat]
    for edit in edits:
        made = edit(image, eligible[chosen], rng)
        if made is not None:
            rejected, sentence = made
            name = "repeated" if edit is _repeat else "omitted"
            provenance = Provenance(chosen=chosen, rejected=chosen, edit=name, sentence=sentence.text)
            return FormedPair(chosen, rejected, score - image.score(rejected), target, ends, provenance)
    return None


def compose(image: VerifiedImage, bases: Mapping[Role, Caption], rng: np.random.Generator) -> tuple[Composed, bool]:
    """Compose the caption that covers most: a candidate without its false and repeated sentences, and what it omits.

    Each kept sentence takes the wording with the most evidence. True sentences of other candidates follow at the end if
    at least half of their claims are missing. A sentence that begins with a pronoun is only kept after the one that it
    followed.

    Args:
        image: the verified candidates.
        bases: the candidates that the composed caption may be based on.
        rng: decides about the end token.

    Returns:
        The caption, and whether it has its end token.
    """
    wordings = image.best_wordings()
    cleaned = {role: _clean(image, caption, wordings) for role, caption in bases.items()}
    role = max(cleaned, key=lambda each: image.score(cleaned[each][0]))
    kept, edits = cleaned[role]
    added = _missing(image, kept, wordings.values())
    edits = [*edits, *(_edit(image, sentence, "added") for sentence in added)]
    sentences = [*kept, *added]
    tokens = [token for sentence in sentences for token in sentence.token_ids]
    text = " ".join(sentence.text for sentence in sentences)
    ends = rng.random() < image.completeness(sentences)
    ending_ids = image.endings[role] if ends else ()
    return Composed(role=role, text=text, token_ids=[*tokens, *ending_ids], edits=edits), ends


def _missing(image: VerifiedImage, caption: Caption, wordings: Iterable[Sentence]) -> Caption:
    """True sentences that a caption lacks: it makes at most half of the claims of each.

    Those that repeat the fewest claims come first, then the most certain ones.
    """
    made = {claim for sentence in caption for claim in image.claims(sentence)}
    found: Caption = []
    remaining = sorted(
        (each for each in wordings if image.logit(each) > 0), key=lambda each: (-image.logit(each), each.text)
    )
    while remaining:
        best = min(remaining, key=lambda each: len(made.intersection(image.claims(each))))
        remaining.remove(best)
        claims = set(image.claims(best))
        if len(claims - made) >= max(1, len(claims & made)):
            found.append(best)
            made |= claims
    return found


def _clean(
    image: VerifiedImage, caption: Caption, wordings: Mapping[tuple[str, ...], Sentence]
) -> tuple[Caption, list[Edit]]:
    """A caption without false and repeated sentences, in the best wordings, and what was done to each sentence."""
    kept: Caption = []
    edits: list[Edit] = []
    made: set[str] = set()
    follows_kept = True
    for sentence in caption:
        claims, continues = image.claims(sentence), refers_back(sentence.text)
        if not set(claims) - made:
            action = "repeated"
        elif image.logit(sentence) < 0 or (continues and not follows_kept):
            action = "removed"
        else:
            action = "kept"
            kept.append(sentence if continues else wordings[claims])
            made |= set(claims)
        if not continues:
            follows_kept = action == "kept"
        edits.append(_edit(image, kept[-1] if action == "kept" else sentence, action))
    return kept, edits


def _edit(image: VerifiedImage, sentence: Sentence, action: str) -> Edit:
    return Edit(text=sentence.text, action=action, role=sentence.role, logit=image.logit(sentence))


def _omit(image: VerifiedImage, caption: Caption, rng: np.random.Generator) -> tuple[Caption, Sentence] | None:
    """The caption without one certain sentence, but never the first; and that sentence.

    The caption must lose by it: what the sentence says is said nowhere else, and no pronoun after it refers to it.
    """
    score = image.score(caption)
    omissible = [
        number
        for number, (sentence, following) in enumerate(zip(caption, [*caption[1:], None], strict=True))
        if number
        and image.logit(sentence) > CERTAIN
        and not (following and refers_back(following.text))
        and image.score(_without(caption, number)) < score
    ]
    if not omissible:
        return None
    number = omissible[int(rng.integers(len(omissible)))]
    return _without(caption, number), caption[number]


def _without(caption: Caption, number: int) -> Caption:
    return [*caption[:number], *caption[number + 1 :]]


def _repeat(image: VerifiedImage, caption: Caption, rng: np.random.Generator) -> tuple[Caption, Sentence] | None:
    """The caption with one of its sentences, but never the first, said again later, in any wording; and that one."""
    repeatable = [number for number, each in enumerate(caption) if number and not refers_back(each.text)]
    if not repeatable:
        return None
    number = repeatable[int(rng.integers(len(repeatable)))]
    key = image.claims(caption[number])
    same = [each for each in image.all_sentences() if image.claims(each) == key and not refers_back(each.text)]
    sentence = same[int(rng.integers(len(same)))]
    position = number + 1 + int(rng.integers(len(caption) - number))
    return [*caption[:position], sentence, *caption[position:]], sentence


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))

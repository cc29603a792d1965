"""Which sentences say the same? Accuracy of verification by how the sentences of an image are grouped into claims.

    python benchmarks/grouping.py [--worlds plain prose] [--scenes 300]

Several captions an image are sampled from m0 at h = 0, and one at a high ratio. Evidence for a claim is pooled over
all sentences of the image that make it: the highest CLIP cosine and the highest probability, that of the sentence per
token, that of the claimed word, or a weighted geometric mean of both ("weight" is the word's). A sentence's evidence
is that of its weakest claim. The table gives, for each grouping, the area under the ROC curve (AUC) with which the
evidence separates the sentences of the h = 0 captions that name an absent object from the others; MiniWorld's scenes
tell which do. Only sentences that name an object are counted. For the verifier, fitted without labels, it also gives
the shares of true sentences among those that pass, and of passed ones among the true sentences. "Merged" words share a
claim (``jsfree/stages/claims.py``). The result is written to ``benchmarks/results/grouping_<date>_<hardware>.json``
and printed as the last line.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import command_line, publish

from jsfree.config import Decoding
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import StageError
from jsfree.evaluation.miniworld import hallucinated_mentions, mentions
from jsfree.miniworld import world
from jsfree.models.clip import Clip, load_clip
from jsfree.models.loading import Captioner, load_captioner
from jsfree.schemas import ScoredCandidate
from jsfree.stages.candidate_sentences import Sentence, split_candidate
from jsfree.stages.claims import (
    CERTAIN_PROBABILITY,
    RARE_SHARE,
    WORD_WEIGHT,
    Claims,
    EmbedTexts,
    WordStatistics,
)
from jsfree.stages.sentences import sentences, words
from jsfree.stages.token_offsets import TokenOffsets
from jsfree.stages.verification import fit_verifier

MODELS = {
    "plain": ("miniworld:captioner", "miniworld:clip"),
    "prose": ("miniworld:prose-captioner", "miniworld:prose-clip"),
}
SAMPLES = 4
HIGH_RATIO = 0.5
CONTENT_SHARE = 0.25
"""Words in a smaller share of all sentences are content words."""
SAMPLED = Decoding(temperature=1.0)


@dataclass(frozen=True)
class Statement:
    """A sentence of an image, its embedding, and whether it names an absent object.

    ``absent`` is None for sentences that are not counted.
    """

    image: int
    sentence: Sentence
    vector_D: np.ndarray = field(repr=False)
    absent: bool | None


Grouping = Callable[[Statement], Mapping[Hashable, float]]
"""Maps a sentence to its claims, each with its probability."""


def main() -> None:
    """Measure both worlds, print a table, write and print the result."""
    arguments = parse()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    figures = {name: measure(name, arguments.scenes) for name in arguments.worlds}
    for name, figure in figures.items():
        print(f"{name}: {figure['sentences']} sentences, {figure['absent_share']:.1%} name an absent object")
        print(f"  {'grouping':44} cosine     p  ranks  verifier  true of passed  passed of true")
        for grouping, measured in figure["groupings"].items():
            print(f"  {grouping:44} " + "  ".join("    -" if x is None else f"{x:.3f}" for x in measured.values()))
    loads.append(os.getloadavg()[0])
    publish("grouping", {}, {"scenes": arguments.scenes, **figures}, loads)


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--worlds", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--scenes", type=int, default=300)
    return parser.parse_args()


def measure(name: str, count: int) -> dict[str, Any]:
    """Accuracy of every grouping on the first ``count`` development scenes."""
    captioner, clip = load_captioner(MODELS[name][0]), load_clip(MODELS[name][1])
    statements = list(sample_statements(captioner, clip, count))
    absent = np.array([statement.absent for statement in statements if statement.absent is not None])
    return {
        "sentences": len(absent),
        "absent_share": float(absent.mean()),
        "groupings": {
            each: accuracy(statements, claims)
            for each, claims in groupings(statements, lambda texts: encode_texts(clip, texts)).items()
        },
    }


@torch.inference_mode()
def encode_texts(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    """Normalised CLIP embeddings, (texts, D)."""
    vectors_TD: np.ndarray = clip.model.encode_text(clip.tokenizer(texts, clip.context_length), normalize=True).numpy()
    return vectors_TD


def sample_statements(captioner: Captioner, clip: Clip, count: int) -> Iterator[Statement]:
    """The distinct sentences of the captions of development scenes."""
    scenes = [world.scene("development", index) for index in range(count)]
    ratios = {**{f"sample-{number}": 0.0 for number in range(SAMPLES)}, "high": HIGH_RATIO}
    pixels = [captioner.inputs(world.draw(scene)) for scene in scenes]
    requests = [
        Request(
            f"{index}/{role}", pixels[index], world.PROMPT, ratio, noise_key(0, 1, scene.scene_id, role), SAMPLED, True
        )
        for index, scene in enumerate(scenes)
        for role, ratio in ratios.items()
    ]
    engine = DualPathEngine(captioner, Workload(slots=64))
    captions = {caption.request_id: caption for caption in engine.decode(requests)}
    offsets = TokenOffsets(captioner)
    for index, scene in enumerate(scenes):
        candidates = [
            {
                "role": role,
                "ratio": ratio,
                "text": caption.text,
                "token_ids": list(caption.token_ids),
                "finish": caption.finish,
                "logps": list(caption.logps or ()),
                "unconditional_logps": list(caption.unconditional_logps or ()),
                "ends": offsets.ends(caption.token_ids, caption.text),
            }
            for role, ratio in ratios.items()
            for caption in [captions[f"{index}/{role}"]]
        ]
        yield from statements_of(index, scene, candidates, clip)


@torch.inference_mode()
def statements_of(index: int, scene: world.Scene, candidates: list[Any], clip: Clip) -> Iterator[Statement]:
    """The distinct sentences of an image's captions with their CLIP cosines, those at h = 0 first."""
    texts = sorted({text for candidate in candidates for text in sentences(candidate["text"])})
    image_D = clip.model.encode_image(clip.transform(world.draw(scene))[None], normalize=True)[0]
    text_TD = encode_texts(clip, texts)
    vectors = dict(zip(texts, text_TD, strict=True))
    cosines = dict(zip(texts, (text_TD @ image_D.numpy()).tolist(), strict=True))
    best: dict[str, Statement] = {}
    for candidate in candidates:
        scored: ScoredCandidate = {
            **candidate,
            "sentences": [{"text": text, "score": cosines[text]} for text in sentences(candidate["text"])],
        }
        for part in split_candidate(scored):
            known = best.get(part.text)
            absent = known.absent if known else is_absent(scene, part.text, high=candidate["role"] == "high")
            if known is None or part.probability > known.sentence.probability:
                best[part.text] = Statement(index, part, vectors[part.text], absent)
    yield from best.values()


def is_absent(scene: world.Scene, text: str, *, high: bool) -> bool | None:
    """Whether a sentence names an absent object; None if it is not counted."""
    return None if high or not mentions(text) else bool(hallucinated_mentions(scene, text))


def groupings(statements: Sequence[Statement], embed: EmbedTexts) -> dict[str, Grouping]:
    """Every way to map a sentence to its claims."""
    statistics = WordStatistics.count(statement.sentence for statement in statements)
    images: dict[int, list[Sentence]] = defaultdict(list)
    for statement in statements:
        images[statement.image].append(statement.sentence)
    apart, merged = Claims.of(statistics), Claims.of(statistics, images.values(), embed)
    limit = RARE_SHARE * len(statements)
    rare = {word: word for word, count in statistics.frequencies.items() if count < limit}
    found: dict[str, Grouping] = {"none": lambda each: {each.sentence.text: each.sentence.probability}}
    for size, name in ((1, "word"), (2, "bigram of content words"), (3, "trigram of content words")):
        found[f"rarest {name}"] = rarest_ngram(statements, statistics.frequencies, size)
    for similarity in (0.95, 0.9, 0.8):
        found[f"sentence embeddings above {similarity}"] = components(statements, similarity)
    for name, claims in (
        ("rare words", Claims(rare, apart.frequencies)),
        ("rare words that depend on the image", apart),
        ("the same, merged", merged),
    ):
        for weight in (0.0, WORD_WEIGHT, 1.0):
            found[f"{name}; weight {weight:.2f}"] = partial(claims_of, claims, weight=weight)
    return found


def claims_of(claims: Claims, each: Statement, *, weight: float) -> dict[Hashable, float]:
    """The claims of a sentence, with a geometric mean of probabilities: the word's with ``weight``, the sentence's."""
    sentence = each.sentence
    made = claims(sentence)
    found: dict[Hashable, float] = {}
    for word, logp in sentence.word_logps.items():
        claim = claims.by_word.get(word, word)
        if claim in made:
            probability = math.exp(weight * logp + (1 - weight) * sentence.mean_logp)
            found[claim] = max(found.get(claim, 0.0), probability)
    return found


def rarest_ngram(statements: Sequence[Statement], counts: Mapping[str, int], size: int) -> Grouping:
    """The rarest n-gram of content words as the only claim; of all words if ``size`` is 1."""
    limit = CONTENT_SHARE * len(statements) if size > 1 else len(statements) + 1

    def ngrams(statement: Statement) -> list[tuple[str, ...]]:
        said = words(statement.sentence.text)
        content = [word for word in said if counts[word] < limit] or said
        length = min(size, len(content))
        return [tuple(content[start : start + length]) for start in range(len(content) - length + 1)]

    frequencies = Counter(gram for statement in statements for gram in set(ngrams(statement)))
    return lambda each: {min(ngrams(each), key=lambda gram: (frequencies[gram], gram)): each.sentence.probability}


def components(statements: Sequence[Statement], similarity: float) -> Grouping:
    """Sentences of an image are one claim if they are connected by pairs of a higher similarity."""
    component: dict[tuple[int, str], int] = {}
    by_image: dict[int, list[Statement]] = {}
    for statement in statements:
        by_image.setdefault(statement.image, []).append(statement)
    for image, own in by_image.items():
        vectors_SD = np.stack([statement.vector_D for statement in own])
        joined = vectors_SD @ vectors_SD.T > similarity
        for _ in range(len(own).bit_length()):
            joined = joined @ joined
        texts = [each.sentence.text for each in own]
        component |= {(image, text): int(row.argmax()) for text, row in zip(texts, joined, strict=True)}
    return lambda each: {component[each.image, each.sentence.text]: each.sentence.probability}


def accuracy(statements: Sequence[Statement], grouping: Grouping) -> dict[str, float | None]:
    """AUC of the pooled cosine and probability, of the sum of their ranks, and of the verifier; and its verdicts.

    Those of the verifier are None if it cannot be fitted.
    """
    pooled: dict[Hashable, np.ndarray] = {}
    sums: dict[Hashable, list[float]] = {}
    for statement in statements:
        for claim, probability in grouping(statement).items():
            key, own = (statement.image, claim), np.array([statement.sentence.cosine, probability])
            pooled[key] = np.maximum(pooled[key], own) if key in pooled else own
            sums.setdefault(claim, []).append(probability)
    counted = [statement for statement in statements if statement.absent is not None]
    rows = {key: row for row, key in enumerate(pooled)}
    own_rows = [[rows[each.image, claim] for claim in grouping(each)] for each in counted]
    absent = np.array([bool(statement.absent) for statement in counted])

    def of_sentences(scores: np.ndarray) -> np.ndarray:
        return np.array([scores[own].min() for own in own_rows])

    signals_NF = np.stack(list(pooled.values()))
    ranks_NF = signals_NF.argsort(0).argsort(0)
    scores = {"cosine": signals_NF[:, 0], "p": signals_NF[:, 1], "ranks": ranks_NF.sum(1)}
    result: dict[str, float | None] = {name: auc(of_sentences(each), absent) for name, each in scores.items()}
    result |= dict.fromkeys(("verifier", "true_of_passed", "passed_of_true"))
    uncertain = [float(np.mean(sums[key[1]])) < CERTAIN_PROBABILITY for key in pooled]  # type: ignore[index]
    with suppress(StageError):
        verifier = fit_verifier(signals_NF[uncertain])
        logits = of_sentences(signals_NF @ np.array(verifier.weights_F) + verifier.bias)
        result["verifier"] = auc(logits, absent)
        result["true_of_passed"] = float((~absent)[logits > 0].mean())
        result["passed_of_true"] = float((logits > 0)[~absent].mean())
    return result


def auc(scores: np.ndarray, absent: np.ndarray) -> float:
    """Probability that a sentence without an absent object has a higher score than one with; ties count half."""
    low, high = np.sort(scores[absent]), scores[~absent]
    below, up_to = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return float((below + up_to).mean() / 2 / len(low))


if __name__ == "__main__":
    main()

"""Which sentences say the same? Accuracy of verification by how the sentences of an image are grouped into claims.

    python benchmarks/grouping.py [--worlds plain prose] [--scenes 300]

Several captions an image are sampled from m0 at h = 0, and one at a high ratio. Evidence for a claim is pooled over all
sentences of the image that make it: the highest CLIP cosine and the highest log-probability, that of the sentence per
token or that of the claimed token alone. A sentence's evidence is that of its weakest claim. The table gives, for each
grouping, the area under the ROC curve (AUC) with which the evidence separates the sentences of the h = 0 captions that
name an absent object from the others; MiniWorld's scenes tell which do. Only sentences that name an object are counted.
"Merged" tokens share a claim if CLIP's embeddings of the words are similar. The result is written to
``benchmarks/results/grouping_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from jsfree.stages.candidate_sentences import split_candidate
from jsfree.stages.sentences import sentences
from jsfree.stages.token_offsets import TokenOffsets
from jsfree.stages.verification import fit_verifier

MODELS = {
    "plain": ("miniworld:captioner", "miniworld:clip"),
    "prose": ("miniworld:prose-captioner", "miniworld:prose-clip"),
}
SAMPLES = 4
HIGH_RATIO = 0.5
CONTENT_SHARE = 0.25
"""Tokens in a smaller share of all sentences are content tokens."""
SAMPLED = Decoding(temperature=1.0)


@dataclass(frozen=True)
class Statement:
    """A sentence of an image, the evidence for it, and whether it names an absent object.

    ``label`` is None for sentences that are not counted.
    """

    image: int
    text: str
    token_ids: tuple[int, ...]
    cosine: float
    logps: tuple[float, ...]
    vector_D: np.ndarray = field(repr=False)
    label: bool | None

    @property
    def mean_logp(self) -> float:
        """Log-probability per token, in nats."""
        return float(np.mean(self.logps))


Claims = Callable[[Statement], Mapping[Hashable, float]]
"""Maps a sentence to its claims, each with its log-probability in nats."""


def main() -> None:
    """Measure both worlds, print a table, write and print the result."""
    arguments = parse()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    figures = {name: measure(name, arguments.scenes) for name in arguments.worlds}
    for name, figure in figures.items():
        print(f"{name}: {figure['sentences']} sentences, {figure['absent_share']:.1%} name an absent object")
        print(f"  {'grouping':42} cosine  log p   ranks   verifier")
        for grouping, auc in figure["auc"].items():
            print(f"  {grouping:42} " + "   ".join("-" if each is None else f"{each:.3f}" for each in auc.values()))
    loads.append(os.getloadavg()[0])
    publish("grouping", {}, {"scenes": arguments.scenes, **figures}, loads)


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--worlds", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--scenes", type=int, default=300)
    return parser.parse_args()


def measure(name: str, count: int) -> dict[str, Any]:
    """AUC of every grouping on the first ``count`` development scenes."""
    captioner, clip = load_captioner(MODELS[name][0]), load_clip(MODELS[name][1])
    statements = list(sample_statements(captioner, clip, count))
    labels = np.array([statement.label for statement in statements if statement.label is not None])
    words = {token: captioner.decode([token]).strip() for each in statements for token in each.token_ids}
    found = groupings(statements, encode_texts(clip, list(words.values())), list(words))
    return {
        "sentences": len(labels),
        "absent_share": float(labels.mean()),
        "auc": {grouping: aucs(statements, claims) for grouping, claims in found.items()},
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
    pixels = [captioner.pixels(world.draw(scene)) for scene in scenes]
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
            label = known.label if known else label_of(scene, part.text, high=candidate["role"] == "high")
            vector_D = vectors[part.text]
            made = Statement(index, part.text, part.token_ids, part.cosine, part.logps, vector_D, label)
            if known is None or made.mean_logp > known.mean_logp:
                best[part.text] = made
    yield from best.values()


def label_of(scene: world.Scene, text: str, *, high: bool) -> bool | None:
    """Whether a sentence names an absent object; None if it is not counted."""
    return None if high or not mentions(text) else bool(hallucinated_mentions(scene, text))


def groupings(statements: Sequence[Statement], vectors_TD: np.ndarray, tokens: Sequence[int]) -> dict[str, Claims]:
    """Every way to map a sentence to its claims; ``vectors_TD`` are the embeddings of ``tokens``."""
    counts = Counter(token for statement in statements for token in set(statement.token_ids))
    found: dict[str, Claims] = {"none": lambda each: {each.text: each.mean_logp}}
    for size, name in ((1, "token"), (2, "bigram of content tokens"), (3, "trigram of content tokens")):
        found[f"rarest {name}"] = rarest_ngram(statements, counts, size)
    for similarity in (0.95, 0.9, 0.8, 0.7):
        found[f"text embeddings above {similarity}"] = components(statements, similarity)
    for share in (0.01, 0.02, 0.05, 0.1, 0.2):
        limit = share * len(statements)
        found[f"all tokens below {share}"] = rare_tokens(counts, limit, {}, own_logp=False)
        found[f"all tokens below {share}, own log p"] = rare_tokens(counts, limit, {}, own_logp=True)
    for similarity in (0.9, 0.8, 0.7, 0.6):
        merged = representatives(vectors_TD, tokens, counts, similarity)
        for own in (False, True):
            name = f"merged above {similarity}, all below 0.05{', own log p' if own else ''}"
            found[name] = rare_tokens(counts, 0.05 * len(statements), merged, own_logp=own)
    return found


def rarest_ngram(statements: Sequence[Statement], counts: Mapping[int, int], size: int) -> Claims:
    """The rarest n-gram of content tokens as the only claim; of all tokens if ``size`` is 1."""
    limit = CONTENT_SHARE * len(statements) if size > 1 else len(statements)

    def ngrams(statement: Statement) -> list[tuple[int, ...]]:
        content = [token for token in statement.token_ids if counts[token] < limit] or list(statement.token_ids)
        length = min(size, len(content))
        return [tuple(content[start : start + length]) for start in range(len(content) - length + 1)]

    frequencies = Counter(gram for statement in statements for gram in set(ngrams(statement)))
    return lambda each: {min(ngrams(each), key=lambda gram: (frequencies[gram], gram)): each.mean_logp}


def rare_tokens(counts: Mapping[int, int], limit: float, merged: Mapping[int, int], *, own_logp: bool) -> Claims:
    """Every token in fewer than ``limit`` sentences, or the rarest one if there is none.

    Args:
        merged: the token that stands for a token; itself by default.
        own_logp: use the token's own log-probability instead of the sentence's.
    """

    def claims(statement: Statement) -> dict[Hashable, float]:
        own = dict(zip(statement.token_ids, statement.logps, strict=True))
        rare = [token for token in own if counts[token] < limit] or [min(own, key=lambda token: counts[token])]
        made: dict[Hashable, float] = {}
        for token in rare:
            claim = merged.get(token, token)
            made[claim] = max(made.get(claim, -np.inf), own[token] if own_logp else statement.mean_logp)
        return made

    return claims


def representatives(
    vectors_TD: np.ndarray, tokens: Sequence[int], counts: Mapping[int, int], similarity: float
) -> dict[int, int]:
    """The most frequent token among those with a word embedding more similar than ``similarity``, for each token."""
    similar_TT = vectors_TD @ vectors_TD.T > similarity
    frequencies = np.array([counts[token] for token in tokens])
    return {token: tokens[int((frequencies * row).argmax())] for token, row in zip(tokens, similar_TT, strict=True)}


def components(statements: Sequence[Statement], similarity: float) -> Claims:
    """Connected components of an image's sentences, joined where their text embeddings are more similar."""
    component: dict[tuple[int, str], Hashable] = {}
    by_image: dict[int, list[Statement]] = {}
    for statement in statements:
        by_image.setdefault(statement.image, []).append(statement)
    for image, own in by_image.items():
        vectors_SD = np.stack([statement.vector_D for statement in own])
        joined = vectors_SD @ vectors_SD.T > similarity
        for _ in range(len(own).bit_length()):
            joined = joined @ joined
        component |= {(image, each.text): int(row.argmax()) for each, row in zip(own, joined, strict=True)}
    return lambda each: {component[each.image, each.text]: each.mean_logp}


def aucs(statements: Sequence[Statement], claims: Claims) -> dict[str, float | None]:
    """AUC of the pooled cosine and log-probability, of the sum of their ranks, and of the verifier's log-odds.

    The last is None if the unsupervised verifier cannot be fitted.
    """
    pooled: dict[Hashable, np.ndarray] = {}
    for statement in statements:
        for claim, logp in claims(statement).items():
            key, own = (statement.image, claim), np.array([statement.cosine, logp])
            pooled[key] = np.maximum(pooled[key], own) if key in pooled else own
    counted = [statement for statement in statements if statement.label is not None]
    signals_NF = np.stack(list(pooled.values()))
    ranks_NF = signals_NF.argsort(0).argsort(0)
    scores = {"cosine": signals_NF[:, 0], "logp": signals_NF[:, 1], "ranks": ranks_NF.sum(1)}
    with suppress(StageError):
        evidence_NF = np.stack([signals_NF[:, 0], np.exp(signals_NF[:, 1])], 1)
        verifier = fit_verifier(evidence_NF)
        scores["verifier"] = evidence_NF @ np.array(verifier.weights_F)
    rows = {key: row for row, key in enumerate(pooled)}
    own = [[rows[each.image, claim] for claim in claims(each)] for each in counted]
    absent = np.array([bool(statement.label) for statement in counted])
    result: dict[str, float | None] = dict.fromkeys(("cosine", "logp", "ranks", "verifier"))
    for name, score_N in scores.items():
        result[name] = auc(np.array([score_N[claimed].min() for claimed in own]), absent)
    return result


def auc(scores: np.ndarray, absent: np.ndarray) -> float:
    """Probability that a sentence without an absent object has a higher score than one with; ties count half."""
    low, high = np.sort(scores[absent]), scores[~absent]
    below, up_to = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return float((below + up_to).mean() / 2 / len(low))


if __name__ == "__main__":
    main()

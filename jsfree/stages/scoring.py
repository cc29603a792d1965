"""Scores captions by the CLIP similarity of their sentences and images (paper, section 3.4; Algorithm 1, line 12).

The score of a caption is the mean cosine of its sentences (and sub-sentences) with the image, neither clipped nor
scaled. Each image and each distinct sentence of a batch is encoded once (``jsfree.models.clip_text``).

Shapes: B images, T texts, D embedding width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch

from jsfree.errors import RowError
from jsfree.gpus import apply_in_halves
from jsfree.images.decoding import load_image
from jsfree.models.clip import load_clip
from jsfree.models.clip_text import TextEncoder
from jsfree.schemas import HIGH, LOW, Role, ScoredCaption, SentenceScore, StageOutput, error_row
from jsfree.stages.sentences import sentences, sub_sentences

if TYPE_CHECKING:
    from PIL import Image

    from jsfree.config import ClipModel, RunConfig, Source
    from jsfree.schemas import Candidate, CaptionRow, ImageRef, Pair

ImageKey = tuple[str, str | None]
Prepared = TypeVar("Prepared")

IMAGES_AT_ONCE = 64


class ClipScorer:
    """CLIP on one device. A call scores a batch of pairs."""

    def __init__(self, config: RunConfig, device: str = "cpu", model: ClipModel | None = None) -> None:
        """Load a CLIP model, by default the first of ``config.clip``.

        Raises:
            ModelError: the model cannot be loaded.
        """
        self._config = config
        model = model or config.clip
        self._clip = load_clip(model.versioned_ref, device, model.pretrained, config.models)
        self._texts = TextEncoder(self._clip)
        self._readers = ThreadPoolExecutor(max(1, int(config.score.resources.cpus)))
        self._lock = threading.Lock()  # tokenizers are not thread-safe; images are read without the lock

    def __call__(self, pairs: Sequence[Pair]) -> StageOutput:
        """Score both captions of each pair: rows of ``schemas.SCORED``.

        A pair is ``inverted`` if the provisional winner (``low``) scores strictly lower; ``gap`` is the absolute
        difference. A pair becomes an error row if its image cannot be used (kinds of ``load_image``) or a caption has
        no sentence (``no_sentence``). ``tokens`` counts the encoded text tokens.
        """
        return score_images(self, pairs, self._config.source, self._readers)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Preprocess an image for the model, on the CPU. Thread-safe."""
        pixels: torch.Tensor = self._clip.transform(image)
        return pixels

    @torch.inference_mode()
    def embed(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode preprocessed images as unit vectors (D,), float32 on the CPU."""
        embedded: list[torch.Tensor] = []
        for start in range(0, len(pixels), IMAGES_AT_ONCE):
            with self._lock:
                embedded += apply_in_halves(
                    self._encode_pixels, torch.stack(list(pixels[start : start + IMAGES_AT_ONCE]))
                )
        return embedded

    def score(self, pairs: Sequence[Pair], images: Sequence[torch.Tensor | RowError]) -> StageOutput:
        """Score pairs as a call does, given the vectors of their images (from ``embed``) or errors."""
        output = StageOutput()
        texts = [texts_by_role(pair) for pair in pairs]
        with self._lock:
            parts = iter(self._parts([text for captions in texts for text in captions.values()]))
            usable: list[tuple[Pair, torch.Tensor, dict[Role, list[str]]]] = []
            for pair, image, captions in zip(pairs, images, texts, strict=True):
                sentences = {role: next(parts) for role in captions}
                empty = next((role for role in (LOW, HIGH) if not sentences[role]), None)
                if isinstance(image, RowError):
                    output.errors.append(error_row(pair["sample_id"], "scored", image))
                elif empty is not None:
                    output.errors.append(error_row(pair["sample_id"], "scored", no_sentence_error(pair, empty)))
                else:
                    usable.append((pair, image, sentences))
            scores, output.tokens = self._scores(
                [image for _, image, _ in usable], [_flat(sentences.values()) for _, _, sentences in usable]
            )
        for (pair, _, sentences), cosines in zip(usable, scores, strict=True):
            remaining = iter(cosines)
            scored = {role: named_scores(of, islice(remaining, len(of))) for role, of in sentences.items()}
            output.rows.append(scored_pair(pair, scored))
        return output

    def score_rows(self, rows: Sequence[CaptionRow]) -> StageOutput:
        """Score captions for evaluation: rows of ``schemas.SCORED_CAPTIONS``.

        A caption without a sentence has empty ``sentences`` and the score NaN, because 0 would distort a mean. Rows of
        the same image share its encoding.
        """
        distinct = {image_key(row["image"]): row["image"] for row in rows}
        limits = self._config.evaluate.source
        images = read_images(self.pixels, list(distinct.values()), limits, self._readers)
        loaded = dict(zip(distinct, images, strict=True))
        read = {key: image for key, image in loaded.items() if not isinstance(image, RowError)}
        embedded = dict(zip(read, self.embed(list(read.values())), strict=True))
        output = self.score_captions([row for row in rows if image_key(row["image"]) in read], embedded)
        for row in rows:
            error = loaded[image_key(row["image"])]
            if isinstance(error, RowError):
                output.errors.append(error_row(row["sample_id"], "captions", error))
        return output

    def score_captions(self, rows: Sequence[CaptionRow], embedded: Mapping[ImageKey, torch.Tensor]) -> StageOutput:
        """Score captions as ``score_rows`` does, given the vectors of their images (from ``embed``)."""
        output = StageOutput()
        captions: dict[ImageKey, list[str]] = {}
        placed: list[tuple[CaptionRow, list[str], int]] = []
        with self._lock:
            parts = self._parts([row["text"] for row in rows])
            for row, texts in zip(rows, parts, strict=True):
                together = captions.setdefault(image_key(row["image"]), [])
                placed.append((row, texts, len(together)))
                together.extend(texts)
            found, output.tokens = self._scores([embedded[key] for key in captions], list(captions.values()))
        scores = dict(zip(captions, found, strict=True))
        for row, texts, start in placed:
            own = scores[image_key(row["image"])][start : start + len(texts)]
            output.rows.append({**row, "sentences": named_scores(texts, own), "score": _mean(own)})
        return output

    def sentence_scores(self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """Compute the cosine of each sentence with its image, in [-1, 1].

        Args:
            images: RGB images.
            captions: sentences of each image. CLIP's tokenizer truncates sentences that exceed the text context
                (``sub_sentences`` prevents that).
        """
        return self._scores(self.embed(list(self._readers.map(self.pixels, images))), captions)[0]

    @torch.inference_mode()
    def _scores(
        self, images: Sequence[torch.Tensor], captions: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], int]:
        """Compute ``sentence_scores`` of embedded images, and the number of encoded text tokens."""
        place = {text: position for position, text in enumerate(dict.fromkeys(_flat(captions)))}
        if not place:
            return [[] for _ in captions], 0
        texts_TD, tokens = self._texts.encode(list(place))
        images_BD = torch.stack(list(images))
        owner = torch.tensor([number for number, caption in enumerate(captions) for _ in caption])
        text = torch.tensor([place[sentence] for sentence in _flat(captions)])
        cosines = iter((images_BD[owner] * texts_TD[text]).sum(-1).tolist())
        return [list(islice(cosines, len(caption))) for caption in captions], tokens

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._clip.model.encode_image(pixels.to(self._clip.device), normalize=True)
        return features.float().cpu()

    def _parts(self, texts: Sequence[str]) -> list[list[str]]:
        """Split texts into sentences, and sentences that do not fit the text context into sub-sentences."""
        captions = [sentences(text) for text in texts]
        distinct = list(dict.fromkeys(_flat(captions)))
        fitting = self._texts.fit(distinct)
        pieces = {
            sentence: [sentence] if fits else sub_sentences(sentence, lambda piece: self._texts.fit([piece])[0])
            for sentence, fits in zip(distinct, fitting, strict=True)
        }
        return [[piece for sentence in caption for piece in pieces[sentence]] for caption in captions]


class PairScorer(Protocol):
    """Scores the captions of pairs: one CLIP model, or two."""

    def __call__(self, pairs: Sequence[Pair]) -> StageOutput:
        """Read the images of pairs and score both captions of each pair."""

    def pixels(self, image: Image.Image) -> Any:
        """Preprocess an image, on the CPU. Thread-safe."""

    def embed(self, pixels: Sequence[Any]) -> Sequence[Any]:
        """Encode preprocessed images."""

    def score(self, pairs: Sequence[Pair], images: Sequence[Any]) -> StageOutput:
        """Score pairs, given their encoded images or errors."""


def score_images(scorer: PairScorer, pairs: Sequence[Pair], limits: Source, readers: Executor) -> StageOutput:
    """Read the images of pairs and score both captions of each pair."""
    images = read_images(scorer.pixels, [pair["image"] for pair in pairs], limits, readers)
    embedded = iter(scorer.embed([image for image in images if not isinstance(image, RowError)]))
    return scorer.score(pairs, [image if isinstance(image, RowError) else next(embedded) for image in images])


def read_images(
    prepare: Callable[[Image.Image], Prepared], images: Sequence[ImageRef], limits: Source, readers: Executor
) -> list[Prepared | RowError]:
    """Read and prepare images in threads; return an error for each image that cannot be used."""

    def read(image: ImageRef) -> Prepared | RowError:
        try:
            return prepare(load_image(image, limits).image)
        except RowError as error:
            return error

    return list(readers.map(read, images))


def texts_by_role(pair: Pair) -> dict[Role, str]:
    """The captions of a pair and its further candidates."""
    candidates = cast("list[Candidate]", pair.get("candidates", []))
    return {LOW: pair["low"]["text"], HIGH: pair["high"]["text"]} | {each["role"]: each["text"] for each in candidates}


def scored_pair(pair: Pair, sentences: Mapping[Role, list[SentenceScore]]) -> dict[str, Any]:
    """The row of ``schemas.SCORED`` of a pair, given the sentence scores of its captions and further candidates."""
    low, high = (
        ScoredCaption(**caption, sentences=sentences[role], score=_mean([each["score"] for each in sentences[role]]))
        for role, caption in ((LOW, pair["low"]), (HIGH, pair["high"]))
    )
    difference = low["score"] - high["score"]
    row = {**pair, "low": low, "high": high, "inverted": difference < 0, "gap": abs(difference)}
    if "candidates" in row:
        candidates = cast("list[Candidate]", row["candidates"])
        row["candidates"] = [{**each, "sentences": sentences[each["role"]]} for each in candidates]
    return row


def named_scores(texts: Iterable[str], scores: Iterable[float]) -> list[SentenceScore]:
    """The sentences of a caption with their scores."""
    return [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]


def _mean(scores: Sequence[float]) -> float:
    """Mean with exact rounding, so that it does not depend on the order of sentences."""
    return fmean(scores) if scores else float("nan")


def image_key(image: ImageRef) -> ImageKey:
    """Identity of an image; several rows may have the same image."""
    return image["id"], image["uri"]


def no_sentence_error(pair: Pair, role: Role) -> RowError:
    """The error of a pair whose caption ``role`` has no sentence."""
    return RowError(
        "no_sentence",
        f"sample {pair['sample_id']}: the caption {role!r} has no sentence to score",
        "if this is frequent, the captioner cannot answer the prompt: set another 'prompt', or for 'high' with"
        " 'generate.loser: bad_prompt' another 'generate.bad_prompt'",
    )


def _flat(captions: Iterable[Sequence[str]]) -> list[str]:
    return [sentence for caption in captions for sentence in caption]

"""Scores captions by the CLIP similarity of their sentences and images (paper, section 3.4; Algorithm 1, line 12).

The score of a caption is the mean cosine of its sentences (and sub-sentences) with the image, neither clipped nor
scaled. Each image and each distinct sentence of a batch is encoded once. Sentences are sorted by length and encoded
without unnecessary padding.

Shapes: B images, T texts, L text tokens, D embedding width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from jsfree.errors import RowError
from jsfree.gpus import apply_in_halves
from jsfree.images.decoding import load_image
from jsfree.models.loading import load_clip
from jsfree.schemas import HIGH, LOW, Role, ScoredCaption, SentenceScore, StageOutput, error_row
from jsfree.stages.sentences import sentences, sub_sentences

if TYPE_CHECKING:
    from PIL import Image

    from jsfree.config import RunConfig, Source
    from jsfree.schemas import Candidate, CaptionRow, ImageRef, Pair

ImageKey = tuple[str, str | None]

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 256


class ClipScorer:
    """CLIP on one device. A call scores a batch of pairs."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        """Load the CLIP model of ``config.clip``.

        Raises:
            ModelError: the model cannot be loaded.
        """
        self._config = config
        self._clip = load_clip(config.clip.versioned_ref, device, config.clip.pretrained, config.models)
        self._pad = int(self._tokens([""])[0, -1])
        self._end = int(self._tokens(["a " * self._clip.context_length])[0, -1])
        self._can_shorten = _can_shorten(self._clip.model)
        self._readers = ThreadPoolExecutor(max(1, int(config.score.resources.cpus)))
        self._lock = threading.Lock()  # tokenizers are not thread-safe; images are read without the lock

    def __call__(self, pairs: Sequence[Pair]) -> StageOutput:
        """Score both captions of each pair: rows of ``schemas.SCORED``.

        A pair is ``inverted`` if the provisional winner (``low``) scores strictly lower; ``gap`` is the absolute
        difference. A pair becomes an error row if its image cannot be used (kinds of ``load_image``) or a caption has
        no sentence (``no_sentence``). ``tokens`` counts the encoded text tokens.
        """
        images = self._images([pair["image"] for pair in pairs], self._config.source)
        embedded = iter(self.embed([image for image in images if not isinstance(image, RowError)]))
        return self.score(pairs, [image if isinstance(image, RowError) else next(embedded) for image in images])

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
        loaded = dict(zip(distinct, self._images(list(distinct.values()), self._config.evaluate.source), strict=True))
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

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as unit vectors, (T, D)."""
        with self._lock, torch.inference_mode():
            vectors: NDArray[np.float32] = self._encode_texts(list(texts))[0].numpy()
        return vectors

    @torch.inference_mode()
    def _scores(
        self, images: Sequence[torch.Tensor], captions: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], int]:
        """Compute ``sentence_scores`` of embedded images, and the number of encoded text tokens."""
        place = {text: position for position, text in enumerate(dict.fromkeys(_flat(captions)))}
        if not place:
            return [[] for _ in captions], 0
        texts_TD, tokens = self._encode_texts(list(place))
        images_BD = torch.stack(list(images))
        owner = torch.tensor([number for number, caption in enumerate(captions) for _ in caption])
        text = torch.tensor([place[sentence] for sentence in _flat(captions)])
        cosines = iter((images_BD[owner] * texts_TD[text]).sum(-1).tolist())
        return [list(islice(cosines, len(caption))) for caption in captions], tokens

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._clip.model.encode_image(pixels.to(self._clip.device), normalize=True)
        return features.float().cpu()

    def _encode_texts(self, texts: list[str]) -> tuple[torch.Tensor, int]:
        """Unit vectors ``texts_TD``, float32 on the CPU, and the number of tokens without padding."""
        tokens_TL = self._tokens(texts)
        lengths = _pooled_at(self._clip.model, tokens_TL) + 1 if self._can_shorten else (tokens_TL != self._pad).sum(-1)
        order = lengths.argsort(stable=True)
        batches = (order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE))
        encoded = [
            apply_in_halves(partial(self._encode_batch, int(lengths[rows].max())), tokens_TL[rows]) for rows in batches
        ]
        return torch.cat(encoded)[order.argsort()], int(lengths.sum())

    def _encode_batch(self, longest: int, tokens_TL: torch.Tensor) -> torch.Tensor:
        model = self._clip.model
        tokens_TL = tokens_TL.to(self._clip.device)
        if not self._can_shorten:
            features: torch.Tensor = model.encode_text(tokens_TL, normalize=True)
        else:
            features = type(model).encode_text(_ShortContext(model, longest), tokens_TL[:, :longest], normalize=True)
        return features.float().cpu()

    def _tokens(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        tokens_TL: torch.Tensor = self._clip.tokenizer(texts, context_length or self._clip.context_length)
        return tokens_TL

    def _parts(self, texts: Sequence[str]) -> list[list[str]]:
        """Split texts into sentences, and sentences that do not fit the text context into sub-sentences."""
        captions = [sentences(text) for text in texts]
        distinct = list(dict.fromkeys(_flat(captions)))
        fitting = self._fit(distinct)
        pieces = {
            sentence: [sentence] if fits else sub_sentences(sentence, lambda piece: self._fit([piece])[0])
            for sentence, fits in zip(distinct, fitting, strict=True)
        }
        return [[piece for sentence in caption for piece in pieces[sentence]] for caption in captions]

    def _fit(self, texts: list[str]) -> list[bool]:
        """Whether the tokens of each text, including start and end, fit the text context.

        A text whose tokens end with padding fits. For other texts (all texts, if the padding token is the end token),
        the last token is compared with that of a context longer by one token, because truncation replaces it.
        """
        if not texts:
            return []
        last = self._tokens(texts)[:, -1]
        fits = (last == self._pad) & (self._pad != self._end)
        uncertain = (~fits).nonzero().flatten().tolist()
        if uncertain:
            longer = self._tokens([texts[row] for row in uncertain], self._clip.context_length + 1)
            ended = (longer[:, -1] == self._pad) | (longer[:, -1] == self._end)
            fits[uncertain] = (longer[:, -2] == last[uncertain]) & ended
        return [bool(fit) for fit in fits]

    def _images(self, images: Sequence[ImageRef], limits: Source) -> list[torch.Tensor | RowError]:
        """Read and preprocess images in threads; return an error for each image that cannot be used."""
        return list(self._readers.map(lambda image: self._image(image, limits), images))

    def _image(self, image: ImageRef, limits: Source) -> torch.Tensor | RowError:
        try:
            return self.pixels(load_image(image, limits).image)
        except RowError as error:
            return error


class _ShortContext:
    """Wraps a CLIP model with a shorter text context, for open_clip's ``CLIP.encode_text``.

    The result is exact, because the text tower is causal and pools at the end token.
    """

    def __init__(self, model: Any, length: int) -> None:
        self._model = model
        self.positional_embedding = model.positional_embedding[:length]
        self.attn_mask = model.attn_mask[:length, :length]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _can_shorten(model: Any) -> bool:
    """Whether the text tower is open_clip's causal one; others are encoded at full length."""
    from open_clip.model import CLIP

    return type(model) is CLIP and model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")


def _pooled_at(model: Any, tokens_TL: torch.Tensor) -> torch.Tensor:
    """Position at which each text is pooled, as in open_clip's ``text_global_pool``."""
    by_token = (tokens_TL == model.text_eos_id).int() if model.text_pool_type == "eos" else tokens_TL
    positions_T: torch.Tensor = by_token.argmax(-1)
    return positions_T


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
    return RowError("no_sentence", f"sample {pair['sample_id']}: the caption {role!r} has no sentence to score")


def _flat(captions: Iterable[Sequence[str]]) -> list[str]:
    return [sentence for caption in captions for sentence in caption]

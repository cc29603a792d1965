"""Imported preferences as rows of a run: samples, and pairs whose captions are tokens of the run's captioner.

A plain class without Ray, as those of the other stages. Only the captioner's tokenizer is loaded, not its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsfree.config import Imported, RunConfig
from jsfree.errors import ConfigError, ModelError, RowError
from jsfree.exchange.importing import Unusable
from jsfree.exchange.preferences import Preference
from jsfree.images.decoding import image_bytes
from jsfree.images.overlap import READERS, require_not_evaluated
from jsfree.models import prompts
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import local_folder
from jsfree.schemas import Decoded, ImageRef, Sample, StageOutput, error_row, sample_id

if TYPE_CHECKING:
    from transformers import LlavaProcessor


def samples(found: Sequence[Preference | Unusable]) -> StageOutput:
    """Rows of ``schemas.SAMPLES`` of what is usable, and an error row for the rest."""
    output = StageOutput()
    for each in found:
        if isinstance(each, Unusable):
            output.errors.append(error_row(each.id, "samples", each.error))
        else:
            output.rows.append({**_sample(each)})
    return output


class ImportedPairs:
    """Rows of ``schemas.PAIRS``: the caption imported as chosen is ``low``, the provisional winner."""

    def __init__(self, config: RunConfig, settings: Imported, model_ref: str, evaluated: Collection[str] = ()) -> None:
        """Load the tokenizer of the captioner ``model_ref``.

        Args:
            evaluated: SHA-256 of the images of the evaluation set; a pair of one of them is excluded.

        Raises:
            ModelError: it cannot be loaded.
        """
        self._seed = config.seed
        self._limits = config.source
        self._evaluated = evaluated
        self._captions = CaptionTokens(local_folder(model_ref, CAPTIONER, config.models), settings.max_tokens)

    def __call__(self, found: Sequence[Preference | Unusable]) -> StageOutput:
        """One row a usable pair; one that cannot or must not be trained on becomes an error row.

        Rows have the hashes of their images. An image that cannot be read has none, and fails when it is scored.
        """
        output = StageOutput()
        pairs = [pair for pair in found if not isinstance(pair, Unusable)]  # the others are error rows of the samples
        with ThreadPoolExecutor(READERS, "hash-image") as readers:
            images = list(readers.map(self._hashed, (pair.image for pair in pairs)))
        for pair, image in zip(pairs, images, strict=True):
            sample = Sample(sample_id=sample_id(pair.id, pair.prompt), image=image, prompt=pair.prompt)
            try:
                require_not_evaluated(image, image["sha256"] or "", self._evaluated)
                low = self._decoded(pair.prompt, pair.chosen, "chosen")
                high = self._decoded(pair.prompt, pair.rejected, "rejected")
            except RowError as error:
                output.errors.append(error_row(sample["sample_id"], "pairs", error))
            else:
                output.rows.append({**sample, "low": low, "high": high, "seed": self._seed})
        return output

    def _hashed(self, image: ImageRef) -> ImageRef:
        try:
            content = image_bytes(image, self._limits)
        except RowError:
            return image
        return {**image, "sha256": hashlib.sha256(content).hexdigest()}

    def _decoded(self, prompt: str, text: str, what: str) -> Decoded:
        try:
            tokens = self._captions.of(prompt, text)
        except RowError as error:
            raise RowError(error.kind, f"the {what} caption {error}") from error
        return {"ratio": None, "text": text, "token_ids": tokens, "finish": "stop"}


class CaptionTokens:
    """Captions as the tokens that a captioner would have generated behind a prompt, its end token included."""

    def __init__(self, folder: Path, most: int) -> None:
        from transformers import LlavaProcessor

        try:
            self._processor: LlavaProcessor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer can be loaded from {folder}: {' '.join(str(error).split())}") from error
        tokenizer = self._processor.tokenizer
        self._tokenizer: Any = tokenizer
        self._most = most
        self._end = _end_token(folder, tokenizer.eos_token_id)
        image = tokenizer.convert_tokens_to_ids(self._processor.image_token)
        self._special = {*tokenizer.all_special_ids, image, self._end} - {tokenizer.unk_token_id}
        self._prefix = lru_cache(1024)(self._prompt)

    def of(self, prompt: str, text: str) -> list[int]:
        """The completion tokens of a caption.

        They are cut from those of the whole conversation, because the first token of a caption depends on what is
        before it.

        Raises:
            RowError: ``special_token``, ``too_long``, or the prompt cannot be rendered.
        """
        prefix, before = self._prefix(prompt)
        together = self._ids(prefix + ("" if prefix[-1:].isspace() else " ") + text)
        tokens = together[len(before) :]
        if together[: len(before)] != before:  # a token reaches across the border
            tokens = self._ids(text, add_special_tokens=False)
        special = next((token for token in tokens if token in self._special), None)
        if special is not None:
            name = self._tokenizer.convert_ids_to_tokens(special)
            raise RowError("special_token", f"holds {name!r}, which is no text for the captioner", "remove it")
        if len(tokens) >= self._most:
            raise RowError(
                "too_long", f"has {len(tokens)} tokens, the limit is {self._most}", "raise 'imported.max_tokens'"
            )
        return [*tokens, self._end]

    def _prompt(self, prompt: str) -> tuple[str, list[int]]:
        try:
            rendered = prompts.conditional_prompt(self._processor, prompt)
        except ConfigError as error:
            raise RowError("image_marker", f"cannot be used: {error}") from error
        return rendered, self._ids(rendered)

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def _end_token(folder: Path, own: int) -> int:
    """The token that ends a caption: the tokenizer's, unless the model was told of others only."""
    path = folder / "generation_config.json"
    told = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    ends = told if isinstance(told, list) else [own if told is None else told]
    return int(own if own in ends else ends[0])


def _sample(pair: Preference) -> Sample:
    return {"sample_id": sample_id(pair.id, pair.prompt), "image": pair.image, "prompt": pair.prompt}

"""Converts imported preferences to rows of a run: samples, and pairs tokenized for the run's captioner.

Only the captioner's tokenizer is loaded, not its weights.
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
from jsfree.exchange.importing import UnusableRecord
from jsfree.exchange.preferences import Preference
from jsfree.images.decoding import image_bytes
from jsfree.images.overlap import READERS, require_not_evaluated
from jsfree.models import prompts
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import local_folder
from jsfree.schemas import Decoded, ImageRef, Sample, StageOutput, error_row, sample_id

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def samples(records: Sequence[Preference | UnusableRecord]) -> StageOutput:
    """Rows of ``schemas.SAMPLES`` for usable records, and error rows for the others."""
    output = StageOutput()
    for record in records:
        if isinstance(record, UnusableRecord):
            output.errors.append(error_row(record.id, "samples", record.error))
        else:
            output.rows.append({**_sample(record)})
    return output


class ImportedPairs:
    """Makes rows of ``schemas.PAIRS``; the caption imported as chosen is ``low``, the provisional winner."""

    def __init__(self, config: RunConfig, settings: Imported, model_ref: str, evaluated: Collection[str] = ()) -> None:
        """Load the tokenizer of the captioner ``model_ref``.

        Args:
            evaluated: SHA-256 of the images of the evaluation set, whose pairs are excluded.

        Raises:
            ModelError: it cannot be loaded.
        """
        self._seed = config.seed
        self._limits = config.source
        self._evaluated = evaluated
        self._captions = CaptionTokens(local_folder(model_ref, CAPTIONER, config.models), settings.max_tokens)

    def __call__(self, records: Sequence[Preference | UnusableRecord]) -> StageOutput:
        """One row per usable pair; excluded pairs and pairs that cannot be tokenized become error rows.

        Rows have the hashes of their images. An unreadable image has none, and fails in scoring.
        """
        output = StageOutput()
        pairs = [pair for pair in records if not isinstance(pair, UnusableRecord)]
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
            raise RowError(error.kind, f"the {what} caption {error.problem}", error.remedy) from error
        return {"ratio": None, "text": text, "token_ids": tokens, "finish": "stop"}


class CaptionTokens:
    """Tokenizes captions as a captioner would have generated them after a prompt, including the end token."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        import transformers

        from jsfree.models.families.base import vision_ids
        from jsfree.models.families.registry import family_of

        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            self._family = family_of(config)
            self._processor: ProcessorMixin = self._family.load_processor(folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"no tokenizer can be loaded from {folder} ({' '.join(str(error).split())})", "fetch the model again"
            ) from error
        tokenizer = self._processor.tokenizer
        self._tokenizer: Any = tokenizer
        self._max_tokens = max_tokens
        self._end = _end_token(folder, tokenizer.eos_token_id)
        vision = vision_ids(self._family, config, self._processor)
        self._special = {*tokenizer.all_special_ids, *vision, self._end} - {tokenizer.unk_token_id}
        self._prefix = lru_cache(1024)(self._prompt)

    def of(self, prompt: str, text: str) -> list[int]:
        """The completion tokens of a caption.

        They are cut out of the tokens of the whole conversation, because the first token depends on the preceding text.

        Raises:
            RowError: ``special_token``, ``too_long``, or the prompt cannot be rendered.
        """
        prefix, before = self._prefix(prompt)
        whole = prompts.tokenize(self._processor, prefix + ("" if prefix[-1:].isspace() else " ") + text)
        tokens = whole[len(before) :]
        if whole[: len(before)] != before:  # a token spans both prompt and caption
            tokens = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        special = next((token for token in tokens if token in self._special), None)
        if special is not None:
            name = self._tokenizer.convert_ids_to_tokens(special)
            raise RowError("special_token", f"contains {name!r}, a special token of the captioner", "remove it")
        if len(tokens) >= self._max_tokens:
            raise RowError(
                "too_long", f"has {len(tokens)} tokens, the limit is {self._max_tokens}", "raise 'imported.max_tokens'"
            )
        return [*tokens, self._end]

    def _prompt(self, prompt: str) -> tuple[str, list[int]]:
        try:
            rendered = prompts.conditional_prompt(self._processor, prompt, self._family.placeholder(self._processor))
        except ConfigError as error:
            raise RowError("image_marker", f"cannot be used: {error.problem}", error.remedy) from error
        return rendered, prompts.tokenize(self._processor, rendered)


def _end_token(folder: Path, own: int) -> int:
    """The token that ends a caption: the tokenizer's, unless the generation configuration has only others."""
    path = folder / "generation_config.json"
    configured = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    ends = configured if isinstance(configured, list) else [own if configured is None else configured]
    return int(own if own in ends else ends[0])


def _sample(pair: Preference) -> Sample:
    return {"sample_id": sample_id(pair.id, pair.prompt), "image": pair.image, "prompt": pair.prompt}

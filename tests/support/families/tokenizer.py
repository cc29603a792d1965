"""A tokenizer of a few hundred tokens, with the special tokens of a family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"
TEXT = (
    "Describe the image in detail. A red square is left of a blue circle.",
    "user assistant model system You are a helpful assistant. User: Assistant: USER ASSISTANT",
    "There is a green triangle in the middle. The picture shows two small shapes. What is it?",
)
WORDS = 340
"""Tokens of the vocabulary without special tokens."""


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE: all bytes, and merges of the words of ``TEXT``."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def tokenizer_of(special: Mapping[str, str], further: tuple[str, ...] = (), begin: str | None = None) -> Any:
    """Build a tokenizer.

    Args:
        special: tokens by the attribute under which a processor looks for them, such as ``image_token``.
        further: other special tokens.
        begin: token that the tokenizer puts before every text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _vocabulary()
    bpe = Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = [PAD, END, *([begin] if begin else []), *special.values(), *further]
    bpe.add_special_tokens([AddedToken(name, normalized=False) for name in dict.fromkeys(names)])
    if begin:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, bpe.token_to_id(begin))]
        )
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        bos_token=begin,
        extra_special_tokens=dict(special),
        padding_side="left",
    )
    return made

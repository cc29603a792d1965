"""MiniWorld's byte-level BPE tokenizers: those of the captioners and CLIP's.

They encode any text; every word of MiniWorld's captions is one token.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jsfree.miniworld import world
from jsfree.pretraining.languages import PLAIN, Language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
# LLaVA-1.5's template from the llava-hf checkpoints, for one round of conversation.
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }} {% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Qwen3-VL's template (Instruct), for turns without a system message.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_VISION = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
"""Tokens of Qwen-VL's tokenizers by the attribute under which the processor looks for them."""


def captioner_tokenizer(language: Language = PLAIN) -> "PreTrainedTokenizerFast":
    """A tokenizer with Llama's conventions: starts with ``<s>``, ends captions with ``</s>``, keeps the case."""
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN]
    prompt = f"USER: {world.PROMPT} ASSISTANT:"
    texts = [f"{prompt} {text}" for text in (*language.sentences(), *language.questions())]
    bpe = _byte_level_bpe(texts, specials, lowercase=False)
    bpe.post_processor = _add_special_tokens(bpe, "<s> $A", ["<s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def qwen_tokenizer(language: Language = PLAIN) -> "PreTrainedTokenizerFast":
    """A tokenizer with Qwen-VL's conventions: no token at the start, ``<|im_end|>`` ends captions."""
    from transformers import PreTrainedTokenizerFast

    pad, start, end = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
    words = [*language.sentences(), *language.questions()]
    # Sentences follow a line break, or a blank within a caption.
    texts = ["user\n", "assistant\n", world.PROMPT, *words, *(f" {text}" for text in words)]
    bpe = _byte_level_bpe(texts, [pad, start, end, *QWEN_VISION.values()], lowercase=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens={**QWEN_VISION, "turn_start_token": start},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def clip_tokenizer(language: Language = PLAIN) -> "PreTrainedTokenizerFast":
    """A tokenizer with open_clip's conventions: lower case; the end token has the largest id, where text is pooled."""
    from transformers import PreTrainedTokenizerFast

    texts = [text.lower() for text in language.sentences()]
    bpe = _byte_level_bpe(texts, ["<pad>"], lowercase=True)
    bpe.add_special_tokens(["<start>", "<end>"])
    bpe.post_processor = _add_special_tokens(bpe, "<start> $A <end>", ["<start>", "<end>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        padding_side="right",
        model_max_length=language.clip_context,
        clean_up_tokenization_spaces=False,
    )


def _byte_level_bpe(corpus: Iterable[str], specials: list[str], *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>" if "<unk>" in specials else None))
    if lowercase:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lowercase)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return bpe


def _add_special_tokens(bpe: Any, template: str, specials: list[str]) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=template, special_tokens=[(token, bpe.token_to_id(token)) for token in specials]
    )

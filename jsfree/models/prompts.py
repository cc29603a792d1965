"""The prompt of a captioner, with the image and without it.

The conditional prompt is the processor's own chat template (LLaVA-1.5: ``USER: <image>\\n<text> ASSISTANT:``).
The unconditional prompt, which the second path of Eq. 3 sees, is the same text without the image token and
the newline behind it. The texts are the same otherwise. Each is tokenized as a whole, so the tokens may differ where
the image stood: a blank before it and the first word behind it may become one token (``docs/method.md``, "Prompts").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsfree.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor


def conditional_prompt(processor: LlavaProcessor, text: str) -> str:
    """Render one user turn that shows one image and asks ``text``, up to the assistant's first token.

    Raises:
        ConfigError: ``text`` itself holds the image token.
        ModelError: the processor has no chat template, or its template does not hold exactly one image token.
    """
    image_token: str = processor.image_token
    if image_token in text:
        raise ConfigError(
            f"the prompt {text!r} holds the image token {image_token!r}", "remove it: the image is added by jsfree"
        )
    if processor.chat_template is None:
        raise ModelError(
            "the processor has no chat template", "use a checkpoint of the llava-hf family, which ships one"
        )
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered: str = processor.apply_chat_template(turn, add_generation_prompt=True)
    if rendered.count(image_token) != 1:
        raise ModelError(f"the chat template yields {rendered!r}, which does not hold exactly one {image_token!r}")
    return rendered


def unconditional_prompt(processor: LlavaProcessor, text: str) -> str:
    """Render the same turn without the image token and its newline (the context of t_u in Eq. 3)."""
    image_token: str = processor.image_token
    rendered = conditional_prompt(processor, text)
    return rendered.replace(image_token + "\n", "").replace(image_token, "")


def visual_tokens(config: LlavaConfig) -> int:
    """Visual tokens of an image: its patches, and with strategy ``full`` the class token (576 for LLaVA-1.5)."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full"))

"""The conditional and unconditional prompts of a captioner.

The conditional prompt is rendered with the processor's chat template (LLaVA-1.5: ``USER: <image>\\n<text>
ASSISTANT:``). The unconditional prompt, the context of the second path in Eq. 3, is the same text without the image
token and the newline after it. Each prompt is tokenized as a whole, so tokens at the position of the image can differ:
a blank before it and the first word after it may become one token (``docs/method.md``, "Prompts").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsfree.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor


def conditional_prompt(processor: LlavaProcessor, text: str) -> str:
    """Render a user turn with one image and ``text``, up to the first token of the assistant.

    Raises:
        ConfigError: ``text`` contains the image token.
        ModelError: the processor has no chat template, or the rendered template does not contain exactly one image
        token.
    """
    image_token: str = processor.image_token
    if image_token in text:
        raise ConfigError(
            f"the prompt {text!r} contains the image token {image_token!r}", "remove it: jsfree adds the image"
        )
    if processor.chat_template is None:
        raise ModelError("the processor has no chat template", "use a checkpoint of llava-hf, which includes one")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered: str = processor.apply_chat_template(turn, add_generation_prompt=True)
    if rendered.count(image_token) != 1:
        raise ModelError(
            f"the chat template renders {rendered!r}, which does not contain exactly one {image_token!r}",
            "correct the template",
        )
    return rendered


def unconditional_prompt(processor: LlavaProcessor, text: str) -> str:
    """Render the turn without the image token and its newline (context of t_u in Eq. 3)."""
    image_token: str = processor.image_token
    rendered = conditional_prompt(processor, text)
    return rendered.replace(image_token + "\n", "").replace(image_token, "")


def visual_tokens(config: LlavaConfig) -> int:
    """Number of visual tokens per image: its patches, plus a class token with strategy ``full`` (576 for LLaVA-1.5)."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full"))

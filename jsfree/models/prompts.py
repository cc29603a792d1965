"""The conditional and unconditional prompts of a captioner.

The conditional prompt is rendered with the processor's chat template (LLaVA-1.5: ``USER: <image>\\n<text>
ASSISTANT:``). The unconditional prompt, the context of the second path in Eq. 3, is the same turn rendered without the
image, so that nothing that a template writes around an image stays. Each prompt is tokenized as a whole, so tokens at
the position of the image can differ: a blank before it and the first word after it may become one token
(``docs/method.md``, "Prompts").
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jsfree.errors import ConfigError, ModelError

THINKING = "<think>"


def conditional_prompt(processor: Any, text: str, placeholder: str) -> str:
    """Render a user turn with one image and ``text``, up to the first token of the assistant.

    Args:
        placeholder: what the template writes in the place of the image.

    Raises:
        ConfigError: ``text`` contains the placeholder.
        ModelError: the processor has no chat template, the rendered template does not contain exactly one placeholder,
            or it asks the model to think.
    """
    require_plain(text, [placeholder])
    rendered = _render(processor, [{"type": "image"}, {"type": "text", "text": text}])
    if rendered.count(placeholder) != 1:
        raise ModelError(
            f"the chat template renders {rendered!r}, which does not contain exactly one {placeholder!r}",
            "correct the template",
        )
    return rendered


def unconditional_prompt(processor: Any, text: str) -> str:
    """Render the turn without the image (context of t_u in Eq. 3).

    Raises:
        ModelError: as ``conditional_prompt``.
    """
    return _render(processor, [{"type": "text", "text": text}])


def require_plain(text: str, vision_tokens: Collection[str]) -> None:
    """Check that a prompt contains none of the tokens that stand for images.

    Raises:
        ConfigError: it does.
    """
    for token in vision_tokens:
        if token in text:
            raise ConfigError(
                f"the prompt {text!r} contains the image token {token!r}", "remove it: jsfree adds the image"
            )


def tokenize(processor: Any, rendered: str) -> list[int]:
    """Tokenize a rendered prompt as transformers does: with a start token, unless the template has written it."""
    tokenizer = processor.tokenizer
    starts = tokenizer.bos_token is not None and rendered.startswith(tokenizer.bos_token)
    return list(tokenizer(rendered, add_special_tokens=not starts)["input_ids"])


def _render(processor: Any, content: list[dict[str, str]]) -> str:
    if processor.chat_template is None:
        raise ModelError("the processor has no chat template", "use a checkpoint with one, such as those of llava-hf")
    turn = [{"role": "user", "content": content}]
    options = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}
    rendered: str = processor.apply_chat_template(turn, add_generation_prompt=True, **options)
    if rendered.rstrip().endswith(THINKING):
        raise ModelError(
            f"the chat template asks the model to think ({rendered[-20:]!r}), and has no option against it",
            "use a checkpoint that answers directly (Instruct)",
        )
    return rendered

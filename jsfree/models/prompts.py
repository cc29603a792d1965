"""The conditional and unconditional prompts of a captioner.

The conditional prompt is rendered with the processor's chat template (LLaVA-1.5: ``USER: <image>\\n<text>
ASSISTANT:``). The unconditional prompt, the context of the second path in Eq. 3, is the same turn rendered without the
image, so that nothing that a template writes around an image stays. Each prompt is tokenized as a whole, so tokens at
the position of the image can differ: a blank before it and the first word after it may become one token
(``docs/method.md``, "Prompts").
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from jsfree.errors import ConfigError, ModelError

THINKING = "<think>"
IMAGE = None
"""The image among the parts of a turn."""


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: its texts, and ``IMAGE`` where the image is."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | None, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns up to the one that the model answers, with one image or none."""

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, prompt: ChatPrompt) -> Conversation:
        """A conversation unchanged; a text as a user turn of the image and this text."""
        return prompt if isinstance(prompt, Conversation) else cls((Turn("user", (IMAGE, prompt)),))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all turns."""
        return tuple(part for turn in self.turns for part in turn.parts if part is not IMAGE)

    def messages(self, *, image: bool) -> list[dict[str, Any]]:
        """The messages for a chat template.

        Args:
            image: whether the image is among them.
        """
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if part is IMAGE else {"type": "text", "text": part}
                    for part in turn.parts
                    if image or part is not IMAGE
                ],
            }
            for turn in self.turns
        ]


ChatPrompt = str | Conversation
"""The text of a single user turn with the image before it, or a conversation."""


def conditional_prompt(processor: Any, prompt: ChatPrompt, placeholder: str) -> str:
    """Render a conversation with one image, up to the first token of the assistant.

    Args:
        placeholder: what the template writes in the place of the image.

    Raises:
        ConfigError: ``prompt`` contains the placeholder.
        ModelError: the processor has no chat template, the rendered template does not contain exactly one placeholder,
            or it asks the model to think.
    """
    conversation = Conversation.of(prompt)
    for text in conversation.texts:
        require_plain(text, [placeholder])
    rendered = _render(processor, conversation.messages(image=True))
    if rendered.count(placeholder) != 1:
        raise ModelError(
            f"the chat template renders {rendered!r}, which does not contain exactly one {placeholder!r}",
            "correct the template",
        )
    return rendered


def unconditional_prompt(processor: Any, prompt: ChatPrompt) -> str:
    """Render the conversation without the image (context of t_u in Eq. 3).

    Raises:
        ModelError: as ``conditional_prompt``.
    """
    return _render(processor, Conversation.of(prompt).messages(image=False))


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


def start_token_template(processor: Any) -> Any:
    """The processor's chat template, which writes the tokenizer's start token if there is one.

    Servers such as vLLM tokenize rendered conversations without special tokens. Transformers adds no second start token
    to a rendered conversation that has one (``apply_chat_template`` with ``tokenize=True``). The template is returned
    unchanged if it writes the token already, or if the tokenizer would then split the text after it differently.
    """
    template, tokenizer = processor.chat_template, processor.tokenizer
    if not isinstance(template, str) or tokenizer.bos_token is None:
        return template
    rendered = unconditional_prompt(processor, "Describe the image.")
    expected = tokenizer(rendered)["input_ids"]
    if rendered.startswith(tokenizer.bos_token) or expected[:1] != [tokenizer.bos_token_id]:
        return template
    for separator in ("", " "):
        written = tokenizer(f"{tokenizer.bos_token}{separator}{rendered}", add_special_tokens=False)["input_ids"]
        if written == expected:
            return f"{{{{ bos_token }}}}{separator}{template}"
    return template


def _render(processor: Any, messages: list[dict[str, Any]]) -> str:
    if processor.chat_template is None:
        raise ModelError("the processor has no chat template", "use a checkpoint with one, such as those of llava-hf")
    options = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}
    rendered: str = processor.apply_chat_template(messages, add_generation_prompt=True, **options)
    if rendered.rstrip().endswith(THINKING):
        raise ModelError(
            f"the chat template begins a reasoning block ({rendered[-20:]!r}), and has no option to turn it off",
            "use a checkpoint that answers directly (Instruct)",
        )
    return rendered

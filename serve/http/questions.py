"""Questions for the models, from the bodies of requests: checks of messages, images, texts and limits."""

from __future__ import annotations

import secrets

from jsfree.config import Serve
from jsfree.models.prompts import IMAGE, ChatPrompt, Conversation, Turn
from serve.http.errors import invalid
from serve.http.protocol import Question
from serve.http.schema import ChatRequest, CompareRequest, ImagePart, Message
from serve.http.security import checked_image, checked_prompt


def chat_question(chat: ChatRequest, settings: Serve) -> Question:
    """The question in a chat request.

    Raises:
        ApiError: the messages have more than one image or no text, or exceed a limit.
    """
    if chat.n > settings.max_choices:
        raise invalid(f"'n' must be at most {settings.max_choices}", "n")
    if chat.top_logprobs and not chat.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs: true'", "top_logprobs")
    image, prompt = _conversation(chat.messages, settings)
    return _question(
        chat,
        settings,
        image,
        prompt,
        choices=chat.n,
        alternatives=chat.top_logprobs if chat.logprobs else None,
    )


def compare_question(compare: CompareRequest, settings: Serve, prompt: str) -> Question:
    """The question for all models in a comparison; ``prompt`` is the default text.

    Raises:
        ApiError: the image or the text is invalid, or exceeds a limit.
    """
    image = checked_image(compare.image, settings, "image")
    text = checked_prompt(prompt if compare.prompt is None else compare.prompt, settings, "prompt")
    return _question(compare, settings, image, text)


def _question(
    asked: ChatRequest | CompareRequest,
    settings: Serve,
    image: bytes | None,
    prompt: ChatPrompt,
    choices: int = 1,
    alternatives: int | None = None,
) -> Question:
    if asked.views is not None and asked.views > settings.max_views:
        raise invalid(f"'views' must be at most {settings.max_views}", "views")
    # The newer name takes precedence.
    length = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return Question(
        image=image,
        prompt=prompt,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=max(asked.top_k, 0),
        max_tokens=length,
        seed=secrets.randbits(53) if asked.seed is None else asked.seed,
        choices=choices,
        stop=tuple(asked.stop),
        ratio=asked.hallucination_ratio,
        views=asked.views,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        alternatives=alternatives,
    )


def _conversation(messages: list[Message], settings: Serve) -> tuple[bytes | None, ChatPrompt]:
    """The image of a conversation, if it has one, and its turns.

    Raises:
        ApiError: there is more than one image, an image outside the user's turns, a turn without content, or the last
            turn is not the user's.
    """
    if messages[-1].role != "user":
        raise invalid("the last message must be of role 'user'", f"messages.{len(messages) - 1}.role")
    images: list[tuple[str, str]] = []
    turns: list[Turn] = []
    remaining = settings.max_prompt_chars
    for index, message in enumerate(messages):
        where = f"messages.{index}.content"
        parts: list[str | None] = []
        for number, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                images.append((f"{where}.{number}.image_url.url", part.image_url.url))
                parts.append(IMAGE)
            elif parts and parts[-1] is not IMAGE:
                parts[-1] = f"{parts[-1]}\n{part.text}"
            else:
                parts.append(part.text)
        if IMAGE in parts and message.role != "user":
            raise invalid("an image must be in a message of role 'user'", where)
        text = "\n".join(part for part in parts if part is not IMAGE)
        may_be_empty = message.role != "user" or (IMAGE in parts and index < len(messages) - 1)
        if text or not may_be_empty:
            checked_prompt(text, settings, where)
        remaining -= len(text)
        turns.append(Turn("system" if message.role == "developer" else message.role, tuple(parts)))
    if remaining < 0:
        raise invalid(
            f"the texts are longer than {settings.max_prompt_chars} characters", "messages", "string_too_long"
        )
    if len(images) > 1:
        raise invalid(f"found {len(images)} images; send at most one", "messages", "invalid_image_count")
    image = checked_image(images[0][1], settings, images[0][0]) if images else None
    return image, _simplest(Conversation(tuple(turns)))


def _simplest(conversation: Conversation) -> ChatPrompt:
    """The text of a single turn, if its image comes first: the prompt of training. Otherwise the conversation."""
    first = conversation.turns[0]
    if len(conversation.turns) > 1 or first.parts[0] is not IMAGE or len(first.parts) != 2:
        return conversation
    return first.parts[1] or conversation

"""What a judge is asked: the messages of a request, the key of its cached reply, and a bound of its tokens."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from jsfree.errors import RowError
from jsfree.judge.settings import JudgeSettings

MESSAGE_TOKENS = 64
"""Bound of the tokens that a chat template adds to a message."""
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


@dataclass(frozen=True)
class JudgeRequest:
    """One request to a judge.

    Args:
        request_id: identifies it among the questions of a run.
        text: the filled prompt.
        images: encoded images (PNG, JPEG, GIF or WebP) that precede the text.
        role: who says the text; images require ``user``.
    """

    request_id: str
    text: str
    images: tuple[bytes, ...] = field(default=(), repr=False)
    role: Literal["user", "system"] = "user"

    def messages(self) -> list[dict[str, Any]]:
        """The messages of the chat request.

        Raises:
            RowError: an image has another format (``undecodable``).
        """
        if not self.images:
            return [{"role": self.role, "content": self.text}]
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": self._data_url(image)}} for image in self.images
        ]
        return [{"role": self.role, "content": [*parts, {"type": "text", "text": self.text}]}]

    def _data_url(self, image: bytes) -> str:
        for signature, media_type in SIGNATURES.items():
            if image.startswith(signature):
                return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
        raise RowError(
            "undecodable",
            f"the image of question {self.request_id!r} is not PNG, JPEG, GIF or WebP",
            "convert it to one of them",
        )

    def content(self, settings: JudgeSettings) -> dict[str, Any]:
        """Everything that determines the reply; images by their hashes.

        The URL is included only without a revision: a pinned model is the same wherever it is served.
        """
        identity = settings.identity()
        if settings.revision is not None:
            del identity["url"]
        images = [hashlib.sha256(image).hexdigest() for image in self.images]
        return {**identity, "role": self.role, "text": self.text, "images": images}

    def token_bound(self, settings: JudgeSettings) -> int:
        """Upper bound of the tokens of the prompt: tokenizers make at most one token of each byte."""
        return len(self.text.encode()) + MESSAGE_TOKENS + settings.image_tokens * len(self.images)


def content_key(content: dict[str, Any]) -> str:
    """SHA-256 of the content of a question, the name of its cached reply."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

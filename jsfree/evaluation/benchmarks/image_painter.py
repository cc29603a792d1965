"""Pictures of captions, by an image model behind the images API of OpenAI or a compatible server.

A picture is stored by the content of its request, so it is paid once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import openai
from pydantic import Field

from jsfree.config.loading import validate
from jsfree.config.settings import Positive, Section, Source
from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import ConfigError, JudgeError, RowError
from jsfree.images.decoding import load_image
from jsfree.judge.settings import PositiveNumber
from jsfree.run.folder import Folder
from jsfree.texts import printable

PROMPT = "A photograph that shows exactly this, and nothing else:\n\n{caption}"
"""What an image model is asked for; a change of it makes other pictures."""
MAX_CHARACTERS = 4000
"""Characters of a caption that are sent; image models refuse longer prompts."""


class PainterSettings(Section):
    """An image model and how it is asked."""

    url: str = "http://127.0.0.1:8000/v1"
    """Base URL of an API that is compatible with OpenAI's, usually ending in ``/v1``."""
    model: str
    """Name of the model in requests."""
    size: str = "1024x1024"
    """Width and height of the pictures, as the model takes them."""
    response_format: str | None = "b64_json"
    """Form of the pictures in responses. ``null``: leave it out, for models that refuse it, such as ``gpt-image-1``."""
    concurrency: Positive = 4
    """Maximum number of requests in flight."""
    timeout: PositiveNumber = 300
    """Seconds until a request without a reply is sent again."""
    attempts: Positive = 5
    """Maximum number of times a request is sent."""
    price: Annotated[float, Field(ge=0)] | None = None
    """Price of one picture. ``null``: costs are not computed."""
    budget: Annotated[float, Field(ge=0)] | None = None
    """Maximum cost of one command. ``null``: no limit."""
    cache: str = "~/.cache/jsfree/pictures"
    """Local folder of the pictures."""
    api_key_variable: str = "JSFREE_PAINTER_API_KEY"
    """Environment variable with the API key. Without the variable, the server is asked without a key."""


def read_painter_settings(path: str) -> PainterSettings:
    """Read the settings of an image model from a YAML file.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is invalid.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "correct --painter") from error
    settings = validate(PainterSettings, read_mapping(content, path), path)
    if settings.budget is not None and settings.price is None:
        raise ConfigError(f"{path}: 'budget' requires 'price'", "add the price of one picture")
    return settings


class ImagePainter:
    """Asks an image model for pictures of captions; thread-safe."""

    def __init__(self, settings: PainterSettings) -> None:
        self.settings = settings
        self.folder = Folder(os.path.expanduser(settings.cache))
        self.paid = self.stored = 0
        self._key = os.environ.get(settings.api_key_variable) or None
        self._api = openai.OpenAI(
            base_url=settings.url,
            api_key=self._key or "none",
            max_retries=settings.attempts - 1,
            timeout=settings.timeout,
        )
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """The model and the prompt, as results record them."""
        return {
            **self.settings.model_dump(include={"url", "model", "size"}),
            "prompt_hash": hashlib.sha256(PROMPT.encode()).hexdigest()[:16],
        }

    def overlap(self, image_id: str, caption: str) -> dict[str, float]:  # noqa: ARG002
        """Return no counts: the objects in a generated picture are unknown."""
        return {}

    def summary(self) -> str:
        """What was paid, in a sentence."""
        cost = "" if self.settings.price is None else f", {self.paid * self.settings.price:.2f} spent"
        return f"{self.paid} new pictures{cost}; {self.stored} were stored before"

    def paint(self, captions: Sequence[str]) -> list[bytes | RowError]:
        """The encoded picture of each caption, or why there is none.

        Raises:
            JudgeError: no request can succeed, or the budget is spent. Pictures received are stored.
        """
        distinct = list(dict.fromkeys(captions))
        with ThreadPoolExecutor(self.settings.concurrency, "paint") as workers:
            pictures = dict(zip(distinct, workers.map(self._picture, distinct), strict=True))
        return [pictures[caption] for caption in captions]

    def _picture(self, caption: str) -> bytes | RowError:
        prompt = PROMPT.format(caption=caption[:MAX_CHARACTERS])
        request = {**self.settings.model_dump(include={"model", "size"}), "prompt": prompt}
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        name = f"{key[:2]}/{key}.image"
        if self.folder.exists(name):
            with self._lock:
                self.stored += 1
            return self.folder.read(name)
        self._reserve()
        try:
            picture = self._request(prompt)
        except (RowError, JudgeError) as error:
            self._release()
            if isinstance(error, JudgeError):
                raise
            return error
        try:
            load_image({"id": name, "uri": None, "bytes": picture, "sha256": None}, Source())
        except RowError as error:  # paid, but not stored: the next command asks again
            return error
        self.folder.write(name, picture)
        return picture

    def _request(self, prompt: str) -> bytes:
        settings = self.settings
        optional: dict[str, Any] = {"response_format": settings.response_format} if settings.response_format else {}
        try:
            response = self._api.images.generate(
                model=settings.model, prompt=prompt, n=1, **{"size": settings.size, **optional}
            )
            return base64.b64decode(response.data[0].b64_json, validate=True)
        except openai.APIStatusError as error:
            raise self._failed(error) from None
        except openai.APIConnectionError as error:
            cause = self._without_key(str(error.__cause__ or error))
            raise JudgeError(f"{settings.url}: the image model cannot be reached ({cause})", "start it") from None
        except (TypeError, IndexError, binascii.Error):
            raise RowError("malformed", f"{settings.url}: the response has no picture in 'data[0].b64_json'") from None

    def _reserve(self) -> None:
        """Count a picture as paid.

        Raises:
            JudgeError: it would exceed the budget.
        """
        settings = self.settings
        with self._lock:
            cost = (self.paid + 1) * (settings.price or 0.0)
            if settings.budget is not None and cost > settings.budget:
                raise JudgeError(
                    f"the budget of the image model is spent: {self.paid} pictures of {settings.price:g} each",
                    "raise 'budget'; the pictures received are stored",
                )
            self.paid += 1

    def _release(self) -> None:
        """Count a picture that was not made as not paid."""
        with self._lock:
            self.paid -= 1

    def _failed(self, error: openai.APIStatusError) -> RowError | JudgeError:
        text = f"{self.settings.url}: HTTP {error.status_code}: {self._without_key(error.message)}"
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            return JudgeError(text, f"correct 'url' and 'model', or {self.settings.api_key_variable}")
        if error.status_code == 429:
            return RowError("rate_limit", text)
        return RowError("rejected" if error.status_code < 500 else "server_error", text)

    def _without_key(self, text: str) -> str:
        return printable(text.replace(self._key, "***") if self._key else text)

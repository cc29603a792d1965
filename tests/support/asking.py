"""Requests for the tests of the server: images as data URLs, chat requests, and a table of invalid requests."""

import base64
import io
from typing import Any

from PIL import Image

from jsfree.miniworld import world

# Limits of the servers in these tests, small so that a test can break them.
SERVED = {"slots": 4, "max_waiting": 28, "max_new_tokens": 400, "max_image_bytes": 100_000, "max_pixels": 250_000}


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def scene_url(index: int = 0) -> str:
    return data_url(world.png_bytes(world.scene("development", index)))


def picture_url(width: int, height: int, kind: str = "png") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, kind)
    return data_url(file.getvalue(), kind)


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or scene_url()}}


def text(words: str = world.PROMPT) -> dict[str, Any]:
    return {"type": "text", "text": words}


def chat(url: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request for one short greedy caption, with changed fields."""
    return {"model": "before", "messages": user(image(url), text()), "temperature": 0, "max_tokens": 12, **fields}


def _without(field: str) -> dict[str, Any]:
    return {name: value for name, value in chat().items() if name != field}


PNG = world.png_bytes(world.scene("development", 0))
SYSTEM = {"role": "system", "content": "You are kind."}
PART = "messages.0.content"
URL = f"{PART}.0.image_url.url"
MISSING = "missing_required_parameter"

# Body, the error's param and code; the status is 400.
BAD_CHATS = {
    "no JSON": (b"{", None, "invalid_json"),
    "nested JSON": (b"[" * 60_000, None, "invalid_json"),
    "a list": ([], None, "invalid_json"),
    "no model": (_without("model"), "model", "missing_required_parameter"),
    "no messages": (_without("messages"), "messages", "missing_required_parameter"),
    "empty messages": (chat(messages=[]), "messages", "invalid_value"),
    "assistant last": (chat(messages=[{"role": "assistant", "content": [text()]}]), "messages.0.role", "invalid_value"),
    "system message last": (chat(messages=[*user(image(), text()), SYSTEM]), "messages.1.role", "invalid_value"),
    "unknown role": (chat(messages=[{"role": "tool", "content": "x"}]), "messages.0.role", "invalid_value"),
    "image of the assistant": (
        chat(messages=[{"role": "assistant", "content": [image()]}, *user(text())]), PART, "invalid_value"
    ),
    "two images": (chat(messages=user(image(), image(), text())), "messages", "invalid_image_count"),
    "an image in two turns": (
        chat(messages=[*user(image(), text()), *user(image(), text())]), "messages", "invalid_image_count"
    ),
    "long texts": (chat(messages=user(text("a " * 1001)) * 2), "messages", "string_too_long"),
    "many messages": (chat(messages=user(text()) * 65), "messages", "invalid_value"),
    "image alone": (chat(messages=user(image())), "messages.0.content", "invalid_value"),
    "blank text": (chat(messages=user(image(), text(" \n"))), "messages.0.content", "invalid_value"),
    "long text": (chat(messages=user(image(), text("a " * 2001))), "messages.0.content", "string_too_long"),
    "image token": (chat(messages=user(image(), text("what <image>?"))), "messages.0.content", "invalid_value"),
    "end token": (chat(messages=user(image(), text("so</s>"))), "messages", "invalid_prompt"),
    "too long for the model": (chat(messages=user(image(), text("red " * 900))), "messages", "context_length_exceeded"),
    "sound": (
        chat(messages=user({"type": "input_audio", "input_audio": {}}, text())), "messages.0.content.0", "invalid_value"
    ),
    "remote image": (chat("https://example.org/a.png"), URL, "invalid_image_url"),
    "internal image": (chat("http://169.254.169.254/latest"), URL, "invalid_image_url"),
    "local file": (chat("file:///etc/passwd"), URL, "invalid_image_url"),
    "data of another kind": (chat(data_url(b"<svg/>", "svg+xml")), URL, "invalid_image_url"),
    "damaged base64": (chat(data_url(PNG)[:-5] + "!!!!!"), URL, "invalid_base64"),
    "no image in it": (chat(data_url(b"hello")), URL, "invalid_image"),
    "cut off": (chat(data_url(PNG[: len(PNG) // 2])), "messages", "invalid_image"),
    "many values": ({"model": "after", "messages": [{}] * 20_000}, None, "invalid_json"),
    "text of another encoding": (b'{"model": "caf\xe9"}', None, "invalid_json"),
    "half a pair in UTF-8": (b'{"model": "\xed\xa0\xbd"}', None, "invalid_json"),
    "half a pair in the text": (chat(messages=user(text("\ud83d What?"))), f"{PART}.0.text", "invalid_unicode"),
    "half a pair in a role": (
        chat(messages=[{"role": "user\udc00", "content": "x"}]), "messages.0.role", "invalid_unicode"
    ),
    "half a pair in the model": (chat(model="before\ud800"), "model", "invalid_unicode"),
    "half a pair in a stop": (chat(stop=["a", "\udfff"]), "stop.1", "invalid_unicode"),
    "half a pair in the address": (chat("data:image/png;base64,\ud800"), URL, "invalid_unicode"),
    "half a pair in the user": (chat(user="\ude00\ud83d"), "user", "invalid_unicode"),
    "half a pair in a key": (chat() | {"\ud800": 1}, None, "invalid_unicode"),
    "half a pair in a key below": (chat(metadata={"\ud800": 1}), "metadata", "invalid_unicode"),
    "null in a list": (chat(messages=[None]), "messages.0", "invalid_value"),
    "no address": (chat(messages=user({"type": "image_url", "image_url": {"url": None}}, text())), URL, MISSING),
    "text without base64": (chat("data:image/png,hello"), URL, "invalid_image"),
    "base64 of no length": (chat(data_url(PNG)[:-4] + "A"), URL, "invalid_base64"),
    "signs outside base64": (chat("data:image/png;base64,AAAA*AAA"), URL, "invalid_base64"),
    "escapes that are none": (chat("data:image/png;base64,AAAA%ZZAA"), URL, "invalid_base64"),
    "letters outside ASCII": (chat("data:image/png;base64,AAAAé"), URL, "invalid_base64"),
    "no type": (chat(data_url(PNG).replace("image/png", "")), URL, "invalid_image_url"),
    "no comma": (chat("data:image/png;base64"), URL, "invalid_image_url"),
    "bitmap as PNG": (chat(picture_url(32, 32, "bmp").replace("bmp", "png")), URL, "invalid_image"),
    "too many pixels": (chat(picture_url(600, 600)), URL, "invalid_image"),
    "too small": (chat(picture_url(1, 1)), URL, "invalid_image"),
    "a thread": (chat(picture_url(4000, 8)), URL, "invalid_image"),
    "too large a file": (chat(data_url(bytes(100_001))), URL, "invalid_image"),
    "hot": (chat(temperature=2.5), "temperature", "invalid_value"),
    "text as a number": (chat(temperature="1"), "temperature", "invalid_value"),
    "not a number": (chat(temperature=float("nan")), "temperature", "invalid_value"),
    "empty nucleus": (chat(top_p=0), "top_p", "invalid_value"),
    "no tokens": (chat(max_tokens=0), "max_tokens", "invalid_value"),
    "too many choices": (chat(n=9), "n", "invalid_value"),
    "choices as truth": (chat(n=True), "n", "invalid_value"),
    "huge seed": (chat(seed=2**64), "seed", "invalid_value"),
    "empty stop": (chat(stop=""), "stop.0", "invalid_value"),
    "many stops": (chat(stop=["a"] * 5), "stop", "invalid_value"),
    "streaming as a number": (chat(stream=1), "stream", "invalid_value"),
    "unknown option of streams": (chat(stream_options={"x": 1}), "stream_options.x", "unknown_parameter"),
    "tools": (chat(tools=[{"type": "function"}]), "tools", "unsupported_parameter"),
    "audio": (chat(audio={"voice": "x"}), "audio", "unsupported_parameter"),
    "JSON answers": (chat(response_format={"type": "json_object"}), "response_format", "unsupported_parameter"),
    "alternatives without log-probabilities": (chat(top_logprobs=2), "top_logprobs", "invalid_value"),
    "many alternatives": (chat(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
    "large penalty": (chat(frequency_penalty=2.5), "frequency_penalty", "invalid_value"),
    "ratio above 1": (chat(hallucination_ratio=1.5), "hallucination_ratio", "invalid_value"),
    "many views": (chat(views=6), "views", "invalid_value"),
    "no views": (chat(views=0), "views", "invalid_value"),
    "bias": (chat(logit_bias={"5": 1}), "logit_bias", "unsupported_parameter"),
    "tool calls": (
        chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{}]}, *user(text())]),
        "messages.0.tool_calls",
        "invalid_value",
    ),
    "a template": (chat(chat_template_kwargs={}), "chat_template_kwargs", "unknown_parameter"),
    "a field in a part": (
        chat(messages=user(image(), {**text(), "size": 3})), "messages.0.content.1.size", "unknown_parameter"
    ),
}  # fmt: skip

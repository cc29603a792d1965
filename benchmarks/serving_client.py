"""A small HTTP client for ``serving.py``: on a machine with two cores a larger one would take most of what it measures.

Speaks just enough HTTP/1.1 for ``jsfree serve``: responses with a length or in chunks, over one connection.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from jsfree.miniworld import world


@dataclass
class Answer:
    """A response: its status, its number of tokens, and when the events with text came, in seconds from the request."""

    status: int = 0
    tokens: int = 0
    times: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Characters that each event brought."""

    def token_times(self) -> list[float]:
        """Seconds per token of each event but the first, by its share of the characters."""
        total = sum(self.lengths)
        tokens = [max(1e-9, self.tokens * length / total) for length in self.lengths]
        gaps = zip(self.times[1:], self.times[:-1], strict=True)
        return [(later - earlier) / count for (later, earlier), count in zip(gaps, tokens[1:], strict=True)]


def chat_body(image: bytes, seed: int, tokens: int, *, stream: bool) -> bytes:
    """A request for a sampled caption of an image."""
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": world.PROMPT}]
    fields = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    body = {"model": "after", "messages": [{"role": "user", "content": content}], "seed": seed, "max_tokens": tokens}
    return json.dumps({**body, **fields}).encode()


class Client:
    """A client with one connection, which it opens again when it has been closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, *, leave: bool = False) -> Answer:
        """Send a chat request and read its answer.

        Args:
            body: the request.
            leave: close the connection after the first text.
        """
        started, answer = time.perf_counter(), Answer()
        reader = await self._send("POST", "/v1/chat/completions", body)
        answer.status, chunked, length = await self._head(reader)
        if not chunked:
            content = json.loads(await reader.readexactly(length))
            answer.tokens = (content.get("usage") or {}).get("completion_tokens", 0)
            return answer
        rest = b""
        async for data in _chunks(reader):
            whole, _, rest = (rest + data).rpartition(b"\n\n")  # HAProxy may end a chunk within an event
            texts, used = _events(whole)
            if texts:
                answer.times.append(time.perf_counter() - started)
                answer.lengths.append(texts)
            answer.tokens = used or answer.tokens
            if leave and answer.times:
                self._close()
                break
        return answer

    async def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels; None if there is none."""
        reader = await self._send("GET", "/metrics", b"")
        status, _, length = await self._head(reader)
        text = (await reader.readexactly(length)).decode()
        self._close()
        values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{")]
        return sum(values) if status == 200 and values else None

    async def _send(self, method: str, path: str, body: bytes) -> asyncio.StreamReader:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        await writer.drain()
        return reader

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, bool, int]:
        """Status, whether the body is in chunks, and its length otherwise."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        chunked = headers.get("transfer-encoding") == "chunked"
        return int(lines[0].split()[1]), chunked, int(headers.get("content-length", 0))

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a body."""
    while True:
        length = int(await reader.readline(), 16)
        data = await reader.readexactly(length + 2)
        if not length:
            return
        yield data[:-2]


def _events(data: bytes) -> tuple[int, int]:
    """Characters of new text in some events, and the number of tokens if the usage is among them."""
    characters = used = 0
    for line in data.split(b"\n\n"):
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        characters += sum(len(choice["delta"].get("content") or "") for choice in event.get("choices", []))
        used = (event.get("usage") or {}).get("completion_tokens", used)
    return characters, used

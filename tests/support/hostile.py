"""Hostile requests: bodies, images and URLs that try to crash, stall, fill or deceive the server. All are made here."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from tests.support.asking import PNG, chat, data_url, image, text, user

MIB = 2**20
CHAT, COMPARE = "/v1/chat/completions", "/compare"


class Hostile(NamedTuple):
    """A request; ``body`` is made when it is sent, because all together they would take gigabytes."""

    name: str
    path: str
    body: Callable[[], bytes]
    headers: Mapping[str, str] = MappingProxyType({})


def corpus() -> list[Hostile]:
    """All hostile requests, in a fixed random order, so that large ones are not sent one after another."""
    requests = [*structures(), *damaged(), *wrong_values(), *unicode_texts(), *urls(), *pictures(), *headers()]
    random.Random(0).shuffle(requests)
    return requests


def structures() -> Iterator[Hostile]:
    """Bodies whose parsing or validation would take gigabytes or minutes."""
    bodies: dict[str, Callable[[], bytes]] = {
        "empty objects": lambda: b'{"model":"after","messages":[' + b"{}," * 4 * MIB + b"{}]}",
        "numbers": lambda: b'{"model":"after","messages":[' + b"1," * 2 * MIB + b"1]}",
        "a million keys": lambda: b"{" + b",".join(b'"k%d":1' % index for index in range(10**6)) + b"}",
        "the same key": lambda: b"{" + b",".join([b'"model":"a"'] * 10**6) + b"}",
        "empty strings": lambda: b'{"stop":[' + b'"",' * 4 * MIB + b'""]}',
        "open arrays": lambda: b"[" * 4 * MIB,
        "nested objects": lambda: b'{"a":' * 2 * MIB,
        "balanced arrays": lambda: b"[" * 5 * MIB + b"]" * 5 * MIB,
        "white space": lambda: b" " * 4 * MIB + b"{}",
        "a long number": lambda: b'{"seed":' + b"9" * 4 * MIB + b"}",
        "a long fraction": lambda: b'{"temperature":0.' + b"3" * 60_000 + b"}",
        "escaped characters": lambda: b'{"user":"' + rb"\u00e9" * 2 * MIB + b'"}',
        "escaped quotes": lambda: b'{"user":"' + rb"\"" * 2 * MIB + b'"}',
        "backslashes": lambda: b'{"user":"' + b"\\" * 4 * MIB,
        "two long strings": lambda: b'{"user":"' + b"a" * 2 * MIB + b'","model":"' + b"a" * 2 * MIB + b'"}',
        "a long model": lambda: json.dumps(chat(model="m" * 2 * MIB)).encode(),
        "a long user": lambda: json.dumps(chat(user="u" * 2 * MIB)).encode(),
        "a long key": lambda: json.dumps(chat(None, **{"k" * 2 * MIB: 1})).encode(),
        "a long text": lambda: json.dumps(chat(messages=user(image(), text("word " * MIB)))).encode(),
        "a text of other characters": lambda: json.dumps(chat(messages=user(image(), text("é🎈" * MIB)))).encode(),
        "an open string": lambda: b'{"user":"' + b"a" * 4 * MIB,
        "UTF-16": lambda: ('{"messages":[' + "{}," * MIB + "{}]}").encode("utf-16"),
        "UTF-32": lambda: ('{"messages":[' + "{}," * MIB + "{}]}").encode("utf-32"),
        "null characters": lambda: bytes(4 * MIB),
        "bytes that are no text": lambda: b"\xff" * 4 * MIB,
        "commas": lambda: b"," * 4 * MIB,
        "quotes": lambda: b'"' * 4 * MIB,
        "more than the limit": lambda: b"{" * 16 * MIB,
        "deep metadata": lambda: json.dumps(chat(metadata=_nested(500))).encode(),
        "wide metadata": lambda: json.dumps(chat(metadata={str(i): "" for i in range(20_000)})).encode(),
        "many stops": lambda: json.dumps(chat(stop=["a"] * 100_000)).encode(),
        "many messages": lambda: json.dumps(chat(messages=user(text()) * 400)).encode(),
        "many parts": lambda: json.dumps(chat(messages=user(*[text()] * 400))).encode(),
        "many images": lambda: json.dumps(chat(messages=user(*[image()] * 60, text()))).encode(),
        "tools": lambda: json.dumps(chat(tools=[{"type": "function", "function": {"name": "f"}}] * 300)).encode(),
    }
    for name, body in bodies.items():
        yield Hostile(f"structure: {name}", CHAT, body)
    for name in ("empty objects", "white space", "quotes", "two long strings"):
        yield Hostile(f"comparison: {name}", COMPARE, bodies[name])


def _nested(depth: int) -> dict[str, Any]:
    return {"a": _nested(depth - 1)} if depth else {}


def damaged() -> Iterator[Hostile]:
    """A valid body that is cut off, changed, or not an object."""
    valid = json.dumps(chat()).encode()
    draw = random.Random(1)
    for index in range(12):
        cut = draw.randrange(1, len(valid))
        yield Hostile(f"cut at {cut}", CHAT, constant(valid[:cut]))
        place, byte = draw.randrange(len(valid)), draw.randrange(256)
        changed = valid[:place] + bytes([byte]) + valid[place + 1 :]
        yield Hostile(f"changed {index}", CHAT, constant(changed))
    for body in (b"", b"null", b"[]", b"1", b'"x"', b"NaN", b"{}{}", b"{'a': 1}", b"\xef\xbb\xbf{}", b"{,}", b"<a/>"):
        yield Hostile(f"body {body!r}", CHAT, constant(body))
        yield Hostile(f"comparison {body!r}", COMPARE, constant(body))


def wrong_values() -> Iterator[Hostile]:
    """Fields with values of other types, out of range, or with a meaning in another system."""
    huge = [10**400, -(10**30), 2**63, -1, 0, 1e308, True, "1", [], {}, [[]], {"$ne": 1}, "{{7*7}}", "../../etc/passwd"]
    for field in ("n", "max_tokens", "temperature", "seed"):
        for index, value in enumerate(huge):
            body = json.dumps(chat(None, **{field: value})).encode()
            yield Hostile(f"{field} {index}", CHAT, constant(body))
    for number in (b"1e999", b"-1e999", b"NaN", b"-Infinity", b"0x10", b"01", b"1.", b"9" * 5000):
        body = json.dumps(chat(seed="?")).replace('"?"', number.decode()).encode()
        yield Hostile(f"seed {number[:9]!r}", CHAT, constant(body))
    for field in ("model", "messages", "stop", "stream", "stream_options", "response_format", "logprobs", "views"):
        for index, value in enumerate(([{}], {"a": [1]}, "\0", -5, [None, None], "constructor")):
            body = json.dumps(chat(None, **{field: value})).encode()
            yield Hostile(f"{field} {index}", CHAT, constant(body))


def unicode_texts() -> Iterator[Hostile]:
    """Texts that a tokenizer, a template or a log could stumble over."""
    texts = ["\ud83d", "\udc00\ud800", "a\0b", "\u202e" * 1000, "\ufeff", "\u0301" * 3999, "🎈" * 4000, "ﷺ" * 4000]
    texts += ["<image>", "<s>", "</s>", "<pad>", "{% for i in range(10**9) %}x{% endfor %}", "{{ self.__init__ }}"]
    texts += ["%s%n%x", "\r\nX-Injected: 1", "\x1b[31m", "a" * 4000, " " * 4000, "\n" * 3999 + "a", "\x85\u2028"]
    for index, words in enumerate(texts):
        body = json.dumps(chat(messages=user(image(), text(words)), user=words[:90], stop=[words[:90] or "x"])).encode()
        yield Hostile(f"text {index}", CHAT, constant(body))


def urls() -> Iterator[Hostile]:
    """Images by URLs that the server must not follow, and data URLs that are expensive to read."""
    fetched = ["http://169.254.169.254/latest/meta-data", "https://localhost/", "file:///etc/passwd", "ftp://a/b"]
    fetched += [
        "https://example.org@127.0.0.1/",
        "gopher://127.0.0.1:6379/_x",
        "//a/b",
        "\\\\host\\share",
        "/etc/passwd",
    ]
    fetched += [
        "http://[::1]/",
        "http://2130706433/",
        "javascript:1",
        "data:",
        "data:,",
        "data:image/png;base64,",
        "blob:x",
    ]
    for url in fetched:
        body = json.dumps(chat(url)).encode()
        yield Hostile(f"url {url}", CHAT, constant(body))
    expensive: dict[str, Callable[[], str]] = {
        "escapes": lambda: "data:image/png," + "%41" * 4 * MIB,
        "escaped base64": lambda: "data:image/png;base64," + "%41" * 4 * MIB,
        "white space": lambda: "data:image/png;base64," + " " * 4 * MIB,
        "padding": lambda: "data:image/png;base64," + "=" * 4 * MIB,
        "zeros": lambda: "data:image/png;base64," + "A" * 5 * MIB,
        "no comma": lambda: "data:" + ";a" * 2 * MIB,
        "parameters": lambda: "data:image/png" + ";a=b" * 3 * MIB + ";base64,AAAA",
        "letters": lambda: "x" * 4 * MIB,
        "percent signs": lambda: "data:image/png," + "%" * 4 * MIB,
    }
    for name, make in expensive.items():
        yield Hostile(f"data url {name}", CHAT, partial(_asked_url, make))
        yield Hostile(f"compared data url {name}", COMPARE, partial(_compared_url, make))


def pictures() -> Iterator[Hostile]:
    """Image files: bombs, damaged, truncated, of other formats, of extreme shapes."""
    files: dict[str, Callable[[], bytes]] = {
        "bomb of 100 megapixels": lambda: encoded(Image.new("1", (10_000, 10_000))),
        "12 megapixels": lambda: encoded(Image.new("L", (4000, 3000))),
        "12 megapixels with alpha": lambda: encoded(Image.new("RGBA", (4000, 3000), (1, 2, 3, 4))),
        "12 megapixels of JPEG": lambda: encoded(Image.new("CMYK", (4000, 3000)), "JPEG"),
        "12 megapixels of WEBP": lambda: encoded(Image.new("RGB", (4000, 3000)), "WEBP"),
        "12 megapixels of 16 bits": lambda: encoded(Image.new("I;16", (4000, 3000))),
        "20 megapixels": lambda: encoded(Image.new("L", (5000, 4000))),
        "largest header": lambda: png_with_size(2**31 - 1, 2**31 - 1),
        "empty header": lambda: png_with_size(0, 0),
        "header of one row": lambda: png_with_size(10**7, 1),
        "more pixels than data": lambda: png_with_size(4000, 4000),
        "row": lambda: encoded(Image.new("L", (60_000, 1))),
        "column": lambda: encoded(Image.new("L", (8, 60_000))),
        "one pixel": lambda: encoded(Image.new("L", (1, 1))),
        "text chunk of 60 MB": lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 * MIB), 9)),
        "international text": lambda: with_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(60 * MIB), 9)),
        "profile of 60 MB": lambda: with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60 * MIB), 9)),
        "palette": lambda: with_chunk(b"PLTE", bytes(7)),
        "animation": lambda: with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "unknown chunk": lambda: with_chunk(b"zzZz", bytes(MIB)),
        "many chunks": lambda: PNG[:33] + chunk(b"tEXt", b"a\0b") * 200_000 + PNG[33:],
        "chunk longer than the file": lambda: PNG[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + PNG[45:],
        "wrong checksum": lambda: PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
        "trailing data": lambda: PNG + bytes(5 * MIB),
        "bytes": lambda: random.Random(2).randbytes(MIB),
        "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "page": lambda: b"<html><script>1</script></html>",
        "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) file",
        "gzip": lambda: zlib.compress(bytes(MIB)),
        "webp canvas": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff",
        "jpeg size": lambda: jpeg().replace(struct.pack(">HH", 64, 64), b"\xff\xff\xff\xff", 1),
        "jpeg scans": lambda: progressive(400),
        "jpeg without end": lambda: jpeg()[:-2],
        "jpeg of markers": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * MIB,
        "jpeg orientation": lambda: oriented(),
        "gif": lambda: encoded(Image.new("P", (64, 64)), "GIF"),
        "bmp": lambda: encoded(Image.new("RGB", (64, 64)), "BMP"),
        "tiff": lambda: encoded(Image.new("RGB", (64, 64)), "TIFF"),
        "ico": lambda: encoded(Image.new("RGB", (64, 64)), "ICO"),
        "animated webp": lambda: animated("WEBP", 60),
        "animated png": lambda: animated("PNG", 60),
        "empty": lambda: b"",
    }
    for name, make in files.items():
        yield Hostile(f"image: {name}", CHAT, partial(_asked_file, make))
    for kind in ("PNG", "JPEG", "WEBP"):
        content = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
        for part in range(1, 8):
            cut = content[: len(content) * part // 8]
            yield Hostile(f"{kind} cut {part}/8", CHAT, partial(_asked, cut))
        draw = random.Random(kind)
        for index in range(6):
            spoiled = bytearray(content)
            for _ in range(20):
                spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
            yield Hostile(f"{kind} spoiled {index}", CHAT, partial(_asked, bytes(spoiled)))


def headers() -> Iterator[Hostile]:
    """Headers that are long, or that steer the server."""
    given = [
        {"x-request-id": "x" * 5000},
        {"x-request-id": "a b"},
        {"content-type": "text/html"},
        {"accept": "x" * 15_000},
    ]
    given += [{"x-request-timeout-seconds": "0"}, {"content-encoding": "gzip"}, {"x-large": "x" * 20_000}]
    given += [
        {"authorization": "Bearer " + "x" * 5000},
        {"host": "evil.example"},
        {"range": "bytes=0-1"},
        {"expect": "x"},
    ]
    for each in given:
        name = next(iter(each))
        yield Hostile(f"header {name} {len(each[name])}", CHAT, lambda: json.dumps(chat()).encode(), each)


def constant(body: bytes) -> Callable[[], bytes]:
    """A function that returns ``body``."""
    return lambda: body


def _asked(content: bytes) -> bytes:
    return json.dumps(chat(data_url(content))).encode()


def _asked_file(make: Callable[[], bytes]) -> bytes:
    return _asked(make())


def _asked_url(make: Callable[[], str]) -> bytes:
    return json.dumps(chat(make())).encode()


def _compared_url(make: Callable[[], str]) -> bytes:
    return json.dumps({"image": make()}).encode()


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with_size(width: int, height: int) -> bytes:
    """A PNG file whose header has another size."""
    return PNG[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + PNG[24:29]) + PNG[33:]


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG file with another chunk after its header."""
    return PNG[:33] + chunk(kind, content) + PNG[33:]


def jpeg() -> bytes:
    """A JPEG file of 64 x 64 pixels."""
    return encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")


def progressive(scans: int) -> bytes:
    """A progressive JPEG file of 2 megapixels whose last scan is repeated."""
    content = encoded(Image.effect_noise((2000, 1000), 50), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2][:4000] * scans + content[-2:]


def oriented() -> bytes:
    """A JPEG file with an orientation that does not exist."""
    exif = Image.Exif()
    exif[0x0112] = 4096
    return encoded(Image.new("RGB", (64, 64)), "JPEG", exif=exif)


def animated(kind: str, frames: int) -> bytes:
    """An image file with many frames."""
    pictures = [Image.new("RGB", (600, 600), (index, 0, 0)) for index in range(frames)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])

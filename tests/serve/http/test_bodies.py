"""Bodies are checked before anything is built from them: hostile ones cost no memory and little time."""

import base64
import json
import random
import time
import tracemalloc

import pytest

from serve.http import bodies
from serve.http.bodies import json_object
from serve.http.errors import ApiError

MAX_TEXT = 4000
MIB = 2**20
# Every body of several MB would take hundreds of MB as Python objects, or minutes to validate.
HOSTILE = {
    "objects": b'{"messages":[' + b"{}," * 4 * MIB + b"{}]}",
    "numbers": b'{"messages":[' + b"1," * 6 * MIB + b"1]}",
    "keys": b"{" + b",".join(b'"k%d":1' % index for index in range(10**6)) + b"}",
    "short strings": b'{"stop":[' + b'"",' * 4 * MIB + b'""]}',
    "strings without commas": b'"a"' * 4 * MIB,
    "open arrays": b"[" * 12 * MIB,
    "open objects": b'{"a":' * 2 * MIB,
    "closed arrays": b"]" * 12 * MIB,
    "white space": b" " * 12 * MIB,
    "one number": b'{"seed":' + b"9" * 12 * MIB + b"}",
    "escaped characters": b'{"user":"' + rb"\u00e9" * 2 * MIB + b'"}',
    "escaped quotes": b'{"user":"' + rb"\"" * 6 * MIB + b'"}',
    "backslashes": b'{"user":"' + b"\\" * 12 * MIB,
    "long strings": b'{"user":"' + b"a" * 6 * MIB + b'","model":"' + b"a" * 6 * MIB + b'"}',
    "an open string": b'{"user":"' + b"a" * 12 * MIB,
    "many entries": b'{"stop":[' + b"0," * 600 + b"0]}",
    "many keys": json.dumps({str(index): 1 for index in range(600)}).encode(),
    "depth": b'{"a":' * 40 + b"1" + b"}" * 40,
    "UTF-16": ('{"messages":[' + "{}," * 10**6 + "{}]}").encode("utf-16"),
    "UTF-32": ('{"messages":[' + "{}," * 10**6 + "{}]}").encode("utf-32"),
    "null characters": bytes(12 * MIB),
    "bytes that are not text": b"\xff" * 12 * MIB,
    "comments": b"/*" * 6 * MIB,
    "commas": b"," * 12 * MIB,
    "colons": b":" * 12 * MIB,
    "quotes": b'"' * 12 * MIB,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused_quickly_and_without_memory(name):
    body = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(ApiError) as refused:
        json_object(body, MAX_TEXT)
    seconds = time.process_time() - started
    assert refused.value.status == 400
    assert refused.value.code in ("invalid_json", "string_too_long")
    assert seconds < 1
    tracemalloc.start()
    with pytest.raises(ApiError):
        json_object(body, MAX_TEXT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * len(body) + MIB  # the decoded text, and for UTF-16 its copy


@pytest.mark.parametrize("escape", ["\\/", "\\n", "\\u002b"])
def test_a_large_image_is_accepted_with_the_escapes_of_other_languages(escape):
    """PHP escapes slashes, folded base64 has line breaks, and some libraries escape the plus sign."""
    image = base64.b64encode(random.Random(0).randbytes(10**7)).decode()
    sign = {"\\/": "/", "\\u002b": "+"}.get(escape)
    written = image.replace(sign, escape) if sign else escape.join(image[i : i + 76] for i in range(0, len(image), 76))
    started = time.process_time()
    fields = json_object(f'{{"image": "{written}", "prompt": "What?"}}'.encode(), MAX_TEXT)
    assert time.process_time() - started < 3
    assert fields["image"].replace("\n", "") == image
    assert fields["prompt"] == "What?"


def test_punctuation_inside_strings_is_not_counted():
    text = '[{"}],:' * 500 + "\\" * 400 + '"'
    assert json_object(json.dumps({"prompt": text, "a": ["\\", '\\"', ""]}).encode(), MAX_TEXT)["prompt"] == text


def test_the_limits_of_the_structure_are_exact():
    def accepted(value) -> bool:
        try:
            json_object(json.dumps({"a": value}).encode(), MAX_TEXT)
        except ApiError:
            return False
        return True

    def nested(depth: int) -> list:
        return [nested(depth - 1)] if depth > 1 else []

    assert accepted([0] * bodies.MAX_ENTRIES)
    assert not accepted([0] * (bodies.MAX_ENTRIES + 1))
    assert accepted(nested(bodies.MAX_DEPTH - 1))
    assert not accepted(nested(bodies.MAX_DEPTH))
    assert accepted([[0] * 400] * 12)
    assert not accepted([[0] * 400] * 13)
    longest = "x" * bodies.ESCAPED * MAX_TEXT
    assert accepted([longest, longest, longest + "x"])
    assert not accepted([longest + "x", longest + "x"])


def test_any_valid_body_within_the_limits_is_parsed_like_json():
    """Random objects with every kind of value, in three forms of white space, equal what json.loads reads."""
    draw = random.Random(0)
    pieces = ['"', "\\", "/", "é", "🎈", "\n", "]", "{", ":", ",", "a", " ", "\0"]

    def value(depth: int):
        kind = draw.randrange(7 if depth else 5)
        if kind < 2:
            return "".join(draw.choices(pieces, k=draw.randrange(6)))
        if kind < 5:
            return draw.choice([True, False, draw.randrange(-99, 99), 0.5])
        entries = [value(depth - 1) for _ in range(draw.randrange(5))]
        return entries if kind == 5 else {'"' * index + str(index): entry for index, entry in enumerate(entries)}

    for index in range(300):
        fields = {"a": value(4), "b": value(2)}
        written = json.dumps(fields, ensure_ascii=index % 2 == 0, indent=[None, 2, 0][index % 3])
        assert json_object(written.encode(), MAX_TEXT) == fields

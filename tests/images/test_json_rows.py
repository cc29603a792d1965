"""JSON is read a window at a time, as the standard library reads it whole; a bad row is one bad row."""

import io
import json
import random

import pytest

from jsfree.errors import RowError, SourceError
from jsfree.images import json_rows as module
from jsfree.images.json_rows import json_rows


def rows(content):
    return list(json_rows(io.BytesIO(content), "x.json"))


def kinds(content):
    return [found.kind if isinstance(found, RowError) else found for found in rows(content)]


@pytest.fixture(params=[1, 7, 64, 2**22])
def window(request, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", max(4, request.param))


def value(rng, depth=0):
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind > 6:
        return {f"k{number}": value(rng, depth + 1) for number in range(rng.randrange(4))}
    texts = ['a"b\\', "é\u4e2d\U0001f600", "[{]},:", "\\u00e9 \n\t", "x" * 50]
    return [None, True, rng.randrange(-(10**9), 10**9), rng.random() * 1e-7, rng.choice(texts), False][kind]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_any_list_is_read_as_json_reads_it(window, encoding):
    rng = random.Random(encoding)
    for _ in range(60):
        expected = [value(rng) for _ in range(rng.randrange(12))]
        text = json.dumps(expected, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        assert rows((" \n" + text + "\n ").encode(encoding)) == expected


def test_lines_are_read_as_rows(window):
    rng = random.Random(0)
    expected = [{"image": str(number), "x": value(rng)} for number in range(40)]
    assert rows("\n\n".join(map(json.dumps, expected)).encode()) == expected
    assert rows(b'{"image": "only.png"}\n') == [{"image": "only.png"}]


def test_numbers_at_the_end_of_a_window_are_whole(window):
    assert rows(b"[1234567890123, -0.5e-3, NaN, -Infinity, 12]")[0::4] == [1234567890123, 12]


def test_a_row_that_python_cannot_hold_is_one_bad_row(window):
    deep = b'{"a": "]}", "b": ' + b"[" * 3000 + b'"]"' + b"]" * 3000 + b"}"
    many = b'{"n": ' + b"9" * 5000 + b"}"
    content = b'[{"image": "a"}, ' + deep + b", " + many + b", " + b"7" * 5000 + b', {"image": "b"}]'
    assert kinds(content) == [{"image": "a"}, "malformed", "malformed", "malformed", {"image": "b"}]
    lines = b'{"image": "a"}\n' + deep + b"\n" + many + b'\n{"image": "b"}'
    assert kinds(lines) == [{"image": "a"}, "malformed", "malformed", {"image": "b"}]


def test_a_byte_that_is_not_utf8_and_a_control_character_spoil_no_other_row(window):
    assert rows(b'[{"image": "a", "x": "caf\xe9\t\n"}, {"image": "b"}]') == [
        {"image": "a", "x": "caf\udce9\t\n"},
        {"image": "b"},
    ]


def test_a_broken_line_spoils_no_other_line(window):
    content = b'{"image": "a"}\n{"image": b}\n{"image": "c\n{"image": "d"}, 5\n\nx\n{"image": "e"}\n{"ima'
    assert kinds(content) == [
        {"image": "a"},
        "malformed",
        "malformed",
        {"image": "d"},
        "malformed",
        "malformed",
        {"image": "e"},
        "malformed",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON"),
        (b"[", r"no valid JSON \(row 0"),
        (b'[{"a": 1}', r"row 0: the file ends within the list"),
        (b'[{"a": 1}, ', r"row 1: Expecting value"),
        (b'[{"a": 1}, {"b": "x', "row 1: Unterminated string"),
        (b'[{"a": 1} {"b": 2}]', r"row 0: '\{' follows it"),
        (b'[{"a": 1}, {"b" 2}, {"c": "long enough for no window to end here"}]', "row 1: Expecting ':' delimiter"),
        (b'[{"a": 1}] []', "more text follows the list of 1 rows"),
        (b"[" * 100_000, "the file ends within it"),
        (b'{"rows": [1]}', "expected a list of rows with the key 'image', found dict"),
        (b'{\n "rows": [\n  1]\n}', "found dict"),
        (b'"rows"', "found str"),
        (b"<html>", "no valid JSON"),
        (b"\xff\xfe[\x00\x00", "no valid JSON"),
    ],
)
def test_what_is_no_list_of_rows_is_refused_with_the_row(window, content, message):
    with pytest.raises(SourceError, match=message) as caught:
        rows(content)
    assert "\n" not in str(caught.value)


def test_a_row_without_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 1000)
    monkeypatch.setattr(module, "LONGEST_ROW", 50_000)

    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size):
            self.taken += size
            assert self.taken < 500_000
            return b'[{"image": "' + b"x" * (size - 12) if self.taken == size else b"x" * size

    with pytest.raises(SourceError, match="row 0 has more than 50000 characters"):
        list(json_rows(Endless(), "x.json"))

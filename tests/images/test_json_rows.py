"""Reading JSON in windows gives the rows that ``json.loads`` gives; a bad row is one error row."""

import io
import json
import random

import pytest

from jsfree.errors import RowError, SourceError
from jsfree.images import json_rows as module
from jsfree.images.json_rows import json_rows


def rows(content, **options):
    return list(json_rows(io.BytesIO(content), "x.json", **options))


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
def test_a_list_gives_the_same_rows_as_json_loads(window, encoding):
    rng = random.Random(encoding)
    for _ in range(60):
        expected = [value(rng) for _ in range(rng.randrange(12))]
        text = json.dumps(expected, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        assert rows((" \n" + text + "\n ").encode(encoding)) == expected


def test_json_lines_are_read_as_rows(window):
    rng = random.Random(0)
    expected = [{"image": str(number), "x": value(rng)} for number in range(40)]
    assert rows("\n\n".join(map(json.dumps, expected)).encode()) == expected
    assert rows(b'{"image": "only.png"}\n') == [{"image": "only.png"}]


def test_numbers_are_not_cut_at_the_end_of_a_window(window):
    assert rows(b"[1234567890123, -0.5e-3, NaN, -Infinity, 12]")[0::4] == [1234567890123, 12]


def test_a_row_too_deep_or_too_large_for_python_is_one_error_row(window):
    deep = b'{"a": "]}", "b": ' + b"[" * 3000 + b'"]"' + b"]" * 3000 + b"}"
    many = b'{"n": ' + b"9" * 5000 + b"}"
    content = b'[{"image": "a"}, ' + deep + b", " + many + b", " + b"7" * 5000 + b', {"image": "b"}]'
    assert kinds(content) == [{"image": "a"}, "malformed", "malformed", "malformed", {"image": "b"}]
    lines = b'{"image": "a"}\n' + deep + b"\n" + many + b'\n{"image": "b"}'
    assert kinds(lines) == [{"image": "a"}, "malformed", "malformed", {"image": "b"}]


def test_invalid_utf8_and_control_characters_do_not_affect_other_rows(window):
    assert rows(b'[{"image": "a", "x": "caf\xe9\t\n"}, {"image": "b"}]') == [
        {"image": "a", "x": "caf\udce9\t\n"},
        {"image": "b"},
    ]


def test_an_invalid_line_does_not_affect_other_lines(window):
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
        (b"", "not valid JSON"),
        (b"[", r"not valid JSON \(row 0"),
        (b'[{"a": 1}', r"row 0: the file ends within the list"),
        (b'[{"a": 1}, ', r"row 1: Expecting value"),
        (b'[{"a": 1}, {"b": "x', "row 1: Unterminated string"),
        (b'[{"a": 1} {"b": 2}]', r"row 0: unexpected '\{' after the row"),
        (b'[{"a": 1}] []', "unexpected text after the list of 1 rows"),
        (b"[" * 100_000, "the file ends within the row"),
        (b"<html>", "not valid JSON"),
        (b"<html>\n<body>\n" * 40, r"not valid JSON \(row 0: Expecting value, character 0"),
        (b'[{"a": 1}, {"b" 2, {"c": 3}', "row 1: Expecting ':' delimiter"),
        (b'[{"a": 1}, {"b" 2}, {"c": "', "row 2: Unterminated string"),
        (b"\xff\xfe[\x00\x00", "not valid JSON"),
    ],
)
def test_invalid_json_is_refused_with_the_row_in_the_error(window, content, message):
    with pytest.raises(SourceError, match=message) as caught:
        rows(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"b" 2}', "Expecting ':' delimiter"),
        (b'{"b": [1, {"c": "]},"}], }', "Expecting"),
        (b"nul", "Expecting value"),
        (b'{"b": "x" "}', "Expecting ',' delimiter"),
        (b"", "Expecting value"),
    ],
)
def test_an_invalid_element_does_not_affect_other_elements(window, broken, reason):
    sound = b'{"c": "long enough for no window to end here"}'
    first, bad, *others = rows(b'[{"a": 1}, ' + broken + b", " + sound + b"\n, " + sound + b", ]")
    assert first == {"a": 1}
    if broken.count(b'"') % 2 == 0:
        assert others == [json.loads(sound)] * 2
    assert bad.kind == "malformed"
    assert str(bad).startswith("is not valid JSON (")
    assert reason in str(bad)


def test_an_unclosed_element_is_refused(window):
    with pytest.raises(SourceError, match="row 1"):
        rows(b'[{"a": 1}, {"b": [2}, {"c": 3}]')


@pytest.mark.parametrize("first", [b"[]", b'[{"image": "a"}]', b"[" * 3000 + b"]" * 3000, b"null", b"3", b'"a"'])
def test_json_lines_are_recognized_whatever_the_first_line_is(first):
    found = rows(first + b'\n{"image": "b"}\n')
    assert len(found) == 2
    assert found[1] == {"image": "b"}
    assert kinds(b"\n" + first + b"\n") == kinds(first)


def test_repeated_keys_are_refused_with_distinct_keys(window):
    good, twice = b'{"a": 1}', b'{"x": {"a": "]}", "a": [{"a": 1}]}}'
    for content in (b"[" + b", ".join([good, twice, good]) + b"]", b"\n".join([good, twice, good])):
        assert rows(content)[1] == {"x": {"a": [{"a": 1}]}}
        before, odd, after = rows(content, distinct_keys=True)
        assert before == after == {"a": 1}
        assert str(odd) == "has the key 'a' twice; correct or remove the row"


def test_byte_order_marks_between_concatenated_files_are_ignored(window):
    assert rows('\ufeff{"a": 1}\n\ufeff{"a": 2}\n'.encode()) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_lines_are_read_in_any_unicode_encoding(window, encoding):
    assert rows('{"a": "\u00e9"}\n{"a": "\U0001f600"}\n'.encode(encoding)) == [{"a": "\u00e9"}, {"a": "\U0001f600"}]


def test_an_empty_file_is_refused_unless_allowed():
    assert rows(b" \n", may_be_empty=True) == []
    with pytest.raises(SourceError, match="the file is empty"):
        rows(b" \n")


def test_invalid_lines_at_the_start_become_error_rows_if_a_valid_line_follows():
    for count in (1, module.MAX_INVALID_START - 1, module.MAX_INVALID_START, 3 * module.MAX_INVALID_START):
        found = rows(b"x\n" * count + b'{"a": 1}\n')
        assert [isinstance(row, RowError) for row in found] == [True] * count + [False]


def test_a_line_that_is_too_long_is_one_error_row(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 100)
    monkeypatch.setattr(module, "MAX_ROW", 1000)
    long = b'{"a": "' + b"x" * 5000 + b'"}'
    found = rows(b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long)
    assert [str(row) for row in found[1::2]] == ["has more than 1000 characters; correct or remove the row"] * 2
    assert found[0::2] == [{"a": 1}, {"a": 2}]


def test_an_endless_row_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 1000)
    monkeypatch.setattr(module, "MAX_ROW", 50_000)

    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size):
            self.taken += size
            assert self.taken < 500_000
            return b'[{"image": "' + b"x" * (size - 12) if self.taken == size else b"x" * size

    with pytest.raises(SourceError, match="row 0 has more than 50000 characters"):
        list(json_rows(Endless(), "x.json"))

"""Rows of a JSON list, or of JSON lines, a few megabytes at a time.

The standard library's scanner parses one row after the other out of a window of the text, so that memory depends on
the longest row and not on the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from jsfree.errors import RowError, SourceError

Scanner = Callable[[str, int], tuple[Any, int]]
WINDOW = 2**22
LONGEST_ROW = 2**26
"""Characters of a row."""
HELD_BACK = 100
"""Broken lines at the start of a file that are kept until it is known whether any line is valid."""
_CUT = 12
"""Characters at the end of the window in which an error may only mean that the window ends there."""
_SPACES = " \t\n\r\ufeff"
"""White space, and the byte order mark, which is left where files were joined."""
_FOLLOWS = f"{_SPACES},]}}"
_SPACE = re.compile(f"[{_SPACES}]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)


def json_rows(
    file: IO[bytes], path: str, *, distinct_keys: bool = False, may_be_empty: bool = False
) -> Iterator[Any | RowError]:
    """The elements of a JSON list, or the values of JSON lines; the content decides which, not the file's name.

    A row that is no valid JSON, or that Python cannot hold, is a RowError, and the next row is read. In a list, a
    broken row ends where its brackets and quotes say; among lines, at the end of its line.

    Args:
        file: open for reading, at its beginning; UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        path: what messages call it.
        distinct_keys: whether an object that has a key twice is a RowError; otherwise its last value counts.
        may_be_empty: whether a file without any row is accepted.

    Raises:
        SourceError: the file is empty or holds no JSON, or its list is cut off, too long in a row, or damaged between
            two rows.
    """
    text = _Window(file, path, distinct_keys)
    try:
        first = text.peek()
        if not first and may_be_empty:
            return
        yield from _list(text) if first == "[" and not text.is_first_of_lines() else _lines(text)
    except _InvalidJsonError as error:
        raise SourceError(
            f"{path} is no valid JSON (row {text.row}: {error})", "it must be one list of rows, or have a row a line"
        ) from error
    except _BadRowError as error:
        raise SourceError(f"{path}: row {text.row} {error}", "remove it") from error


class _BadRowError(Exception):
    """A row cannot be had; the message completes "the row ..."."""


class _InvalidJsonError(_BadRowError):
    """The text is no JSON; the message says why, and where in the row."""


def _unusable(error: _BadRowError) -> RowError:
    what = f"is no valid JSON ({error})" if isinstance(error, _InvalidJsonError) else str(error)
    return RowError("malformed", f"{what}", "correct or remove the row")


class _DuplicateKeyError(ValueError):
    """A JSON object has a key twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _scanners(hook: Callable[[list[tuple[str, Any]]], Any] | None) -> dict[bool, Scanner]:
    """Scanners that refuse control characters in strings (``strict``, True), or accept them."""
    return {
        strict: json.JSONDecoder(strict=strict, object_pairs_hook=hook).scan_once  # type: ignore[attr-defined]
        for strict in (False, True)
    }


_SCANNERS = {False: _scanners(None), True: _scanners(_distinct)}
"""By whether keys must be distinct."""


class _Window:
    """A part of a text that is read on as needed; ``position`` is where the next value begins."""

    def __init__(self, file: IO[bytes], path: str, distinct_keys: bool) -> None:
        self.row = 0
        self.position = 0
        self.text = ""
        self._path = path
        self._file = file
        self._scanners = _SCANNERS[distinct_keys]
        self._ended = False
        head = file.read(WINDOW)
        encoding = json.detect_encoding(head)
        # A byte that is not UTF-8 spoils the string it is in, and not the file.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._append(head)

    def _append(self, content: bytes) -> None:
        """Take over the next part of the file, and drop what was parsed."""
        self._ended = not content
        try:
            more = self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise SourceError(f"{self._path} is no valid JSON ({error})", "save it as UTF-8") from error
        self.text = self.text[self.position :] + more
        self.position = 0

    def more(self) -> bool:
        """Read on; False at the end of the file.

        Raises:
            _BadRowError: the row is too long.
        """
        if self._ended:
            return False
        if len(self.text) - self.position > LONGEST_ROW:
            raise _BadRowError(f"has more than {LONGEST_ROW} characters")
        self._append(self._file.read(max(WINDOW, len(self.text) - self.position)))
        return True

    def peek(self) -> str:
        """The next character that is no white space, at ``position``; empty at the end."""
        while True:
            if self.text[self.position : self.position + 1] in _SPACES:
                self.position = _spaces_end(self.text, self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def is_first_of_lines(self) -> bool:
        """Whether the line at ``position`` is a whole list and another row begins the next line, all in the window."""
        while (end := self.text.find("\n", self.position)) < 0 and len(self.text) < WINDOW:
            if not self.more():
                break
        if end < 0 or not self.text.startswith(("{", "["), _spaces_end(self.text, end)):
            return False
        line, depth = self.text[self.position : end].rstrip(), 0
        for token in _TOKEN.finditer(line):
            depth += _deeper(token[0])
            if depth == 0:
                return token.end() == len(line)
        return False

    def value(self, *, strict: bool) -> Any:
        """The value at ``position``, which moves behind it.

        Args:
            strict: refuse control characters in strings, such as the end of a line.

        Raises:
            _BadRowError: there is no valid value, or none that Python can hold; ``position`` stays where it is.
        """
        scan = self._scanners[strict]
        while True:
            try:
                value, end = scan(self.text, self.position)
            except StopIteration as error:
                self._require_cut("Expecting value", int(error.value))
            except json.JSONDecodeError as error:
                self._require_cut(error.msg, error.pos)
            except RecursionError as error:
                raise _BadRowError("is nested too deeply") from error
            except _DuplicateKeyError as error:
                raise _BadRowError(str(error)) from error
            except ValueError as error:
                raise _BadRowError("has a number of too many digits") from error
            else:
                if self._is_whole(end):
                    self.position = end
                    return value
            self.more()

    def _is_whole(self, end: int) -> bool:
        """Whether a value that ends here does not go on behind the window, as a number might."""
        return self._ended or (end < len(self.text) and (self.text[end] in _FOLLOWS or end < len(self.text) - _CUT))

    def _require_cut(self, message: str, position: int) -> None:
        """Take an error for one of the window's end, not of the text, or raise it."""
        near_end = position >= len(self.text) - _CUT or message.startswith("Unterminated string")
        if self._ended or not near_end:
            raise _InvalidJsonError(f"{message.removesuffix(' at')}, character {position - self.position} of the row")

    def skip_line(self) -> None:
        """Move behind the next end of a line."""
        while (end := self.text.find("\n", self.position)) < 0:
            self.position = len(self.text)
            if not self.more():
                return
        self.position = end + 1

    def skip_element(self) -> bool:
        """Move behind the element of a list at ``position``, whether it is valid or not; False if it does not end.

        Raises:
            _BadRowError: it is too long.
        """
        while (end := self._end_of_element()) is None:
            if not self.more():
                return False
        self.position = end
        return True

    def _end_of_element(self) -> int | None:
        """Where an element of a list ends, by its quotes and brackets alone."""
        depth = 0
        for token in _TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark == '"' and not self._ended:
                return None  # a string that the window cuts off
            if depth == 0 and mark in (",", "]", "}"):
                return token.start()
            depth += _deeper(mark)
        return None


def _deeper(mark: str) -> int:
    """By how much a token changes the depth of brackets."""
    return (mark in ("[", "{")) - (mark in ("]", "}"))


def _spaces_end(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing at least


def _list(text: _Window) -> Iterator[Any | RowError]:
    text.position += 1
    while text.peek() != "]":
        yield _element(text)
        text.row += 1
        if text.text[text.position] == ",":
            text.position += 1
    text.position += 1
    if text.peek():
        raise _InvalidJsonError(f"more text follows the list of {text.row} rows")


def _element(text: _Window) -> Any | RowError:
    """The element of a list at ``position``, which moves to what follows it: a comma or the end of the list."""
    value: Any
    try:
        value = text.value(strict=False)
    except _BadRowError as error:
        if not text.skip_element():
            if isinstance(error, _InvalidJsonError):
                raise
            raise _InvalidJsonError("the file ends within it") from error
        value = _unusable(error)
    follows = text.peek()
    if follows not in (",", "]"):
        raise _InvalidJsonError(f"{follows!r} follows it" if follows else "the file ends within the list")
    return value


def _lines(text: _Window) -> Iterator[Any | RowError]:
    """Values that only white space separates; one that is broken is passed over to the end of its line.

    Raises:
        _InvalidJsonError: none of them is valid.
    """
    held: list[RowError] | None = []
    first: _BadRowError = _InvalidJsonError("the file is empty")
    while text.peek():
        value: Any
        try:
            value = text.value(strict=True)
        except _BadRowError as error:
            value = _unusable(error)
            text.skip_line()
            if held is not None and isinstance(error, _InvalidJsonError) and len(held) < HELD_BACK:
                first = error if not held else first
                held.append(value)
                text.row += 1
                continue
        if held is not None:
            yield from held
            held = None
        yield value
        text.row += 1
    if held is not None:
        text.row = 0
        raise first

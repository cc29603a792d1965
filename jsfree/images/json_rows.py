"""Streaming reader of the rows of a JSON list or of JSON lines.

The scanner of the standard library parses one row at a time from a window of the text, so memory depends on the longest
row, not on the size of the file.
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
"""Size of the window in characters."""
MAX_ROW = 2**26
"""Maximum length of a row in characters."""
MAX_INVALID_START = 100
"""Maximum number of invalid lines at the start of a file that are held back until a valid line is found."""
_CUT = 12
"""Number of characters at the end of the window in which an error may be caused by the end of the window."""
_SPACES = " \t\n\r\ufeff"
"""White space and the byte order mark, which remains where files were concatenated."""
_FOLLOWS = f"{_SPACES},]}}"
_SPACE = re.compile(f"[{_SPACES}]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)


def json_rows(
    file: IO[bytes], path: str, *, distinct_keys: bool = False, may_be_empty: bool = False
) -> Iterator[Any | RowError]:
    """Iterate over the elements of a JSON list or the values of JSON lines. The format is detected from the content.

    A row that is not valid JSON, or cannot be represented in Python, yields a RowError, and reading continues. The end
    of an invalid row is determined by its brackets and quotes in a list, and is the end of the line in JSON lines.

    Args:
        file: a binary file at its start, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        path: name of the file, for error messages.
        distinct_keys: yield a RowError for objects with duplicate keys; otherwise the last value is used.
        may_be_empty: accept a file without rows.

    Raises:
        SourceError: the file is empty or not JSON, has a row that is too long, or has a list that is truncated or
            invalid between two rows.
    """
    text = _Window(file, path, distinct_keys)
    try:
        first = text.peek()
        if not first and may_be_empty:
            return
        yield from _list(text) if first == "[" and not text.is_first_of_lines() else _lines(text)
    except _InvalidJsonError as error:
        raise SourceError(
            f"{path} is not valid JSON (row {text.row}: {error})", "write one list of rows, or one row per line"
        ) from error
    except _BadRowError as error:
        raise SourceError(f"{path}: row {text.row} {error}", "remove it") from error


class _BadRowError(Exception):
    """A row cannot be read; the message is a predicate whose subject is the row."""


class _InvalidJsonError(_BadRowError):
    """The text is not JSON; the message contains the reason and the position."""


def _unusable(error: _BadRowError) -> RowError:
    what = f"is not valid JSON ({error})" if isinstance(error, _InvalidJsonError) else str(error)
    return RowError("malformed", what, "correct or remove the row")


class _DuplicateKeyError(ValueError):
    """A JSON object has a duplicate key."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    distinct = dict(pairs)
    if len(distinct) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return distinct


def _scanners(hook: Callable[[list[tuple[str, Any]]], Any] | None) -> dict[bool, Scanner]:
    """Create scanners by whether they refuse control characters in strings (``strict``)."""
    return {
        strict: json.JSONDecoder(strict=strict, object_pairs_hook=hook).scan_once  # type: ignore[attr-defined]
        for strict in (False, True)
    }


_SCANNERS = {False: _scanners(None), True: _scanners(_distinct)}
"""Scanners by whether keys must be distinct."""


class _Window:
    """A window of the text; ``position`` is the start of the next value."""

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
        # A byte that is not UTF-8 invalidates only the string that contains it.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._append(head)

    def _append(self, content: bytes) -> None:
        """Append the next part of the file and drop the parsed text."""
        self._ended = not content
        try:
            more = self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise SourceError(f"{self._path} is not valid JSON ({error})", "save it as UTF-8") from error
        self.text = self.text[self.position :] + more
        self.position = 0

    def more(self) -> bool:
        """Read the next part of the file; return False at its end.

        Raises:
            _BadRowError: the row is too long.
        """
        if self._ended:
            return False
        if len(self.text) - self.position > MAX_ROW:
            raise _BadRowError(f"has more than {MAX_ROW} characters")
        self._append(self._file.read(max(WINDOW, len(self.text) - self.position)))
        return True

    def peek(self) -> str:
        """Skip white space and return the next character, or an empty string at the end."""
        while True:
            if self.text[self.position : self.position + 1] in _SPACES:
                self.position = _spaces_end(self.text, self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def is_first_of_lines(self) -> bool:
        """Whether the line at ``position`` is a complete list and the next line starts another row."""
        while (end := self.text.find("\n", self.position)) < 0 and len(self.text) < WINDOW:
            if not self.more():
                break
        if end < 0 or not self.text.startswith(("{", "["), _spaces_end(self.text, end)):
            return False
        line, depth = self.text[self.position : end].rstrip(), 0
        for token in _TOKEN.finditer(line):
            depth += _depth_change(token[0])
            if depth == 0:
                return token.end() == len(line)
        return False

    def value(self, *, strict: bool) -> Any:
        """Parse the value at ``position`` and advance beyond it.

        Args:
            strict: refuse control characters in strings, such as line breaks.

        Raises:
            _BadRowError: the value is invalid or cannot be represented; ``position`` is unchanged.
        """
        scan = self._scanners[strict]
        while True:
            try:
                value, end = scan(self.text, self.position)
            except StopIteration as error:
                self._require_truncated("Expecting value", int(error.value))
            except json.JSONDecodeError as error:
                self._require_truncated(error.msg, error.pos)
            except RecursionError as error:
                raise _BadRowError("is nested too deeply") from error
            except _DuplicateKeyError as error:
                raise _BadRowError(str(error)) from error
            except ValueError as error:
                raise _BadRowError("has a number with too many digits") from error
            else:
                if self._is_complete(end):
                    self.position = end
                    return value
            self.more()

    def _is_complete(self, end: int) -> bool:
        """Whether a value with this end is complete, unlike a number that may continue beyond the window."""
        return self._ended or (end < len(self.text) and (self.text[end] in _FOLLOWS or end < len(self.text) - _CUT))

    def _require_truncated(self, message: str, position: int) -> None:
        """Return if an error may be caused by the end of the window, otherwise raise it."""
        near_end = position >= len(self.text) - _CUT or message.startswith("Unterminated string")
        if self._ended or not near_end:
            raise _InvalidJsonError(f"{message.removesuffix(' at')}, character {position - self.position} of the row")

    def skip_line(self) -> None:
        """Advance beyond the next line break."""
        while (end := self.text.find("\n", self.position)) < 0:
            self.position = len(self.text)
            if not self.more():
                return
        self.position = end + 1

    def skip_element(self) -> bool:
        """Advance beyond the list element at ``position``, valid or not; return False if it does not end.

        Raises:
            _BadRowError: the element is too long.
        """
        while (end := self._end_of_element()) is None:
            if not self.more():
                return False
        self.position = end
        return True

    def _end_of_element(self) -> int | None:
        """Find the end of a list element from its quotes and brackets."""
        depth = 0
        for token in _TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark == '"' and not self._ended:
                return None  # a string continues beyond the window
            if depth == 0 and mark in (",", "]", "}"):
                return token.start()
            depth += _depth_change(mark)
        return None


def _depth_change(mark: str) -> int:
    """Change of the nesting depth by a token."""
    return (mark in ("[", "{")) - (mark in ("]", "}"))


def _spaces_end(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it also matches an empty string


def _list(text: _Window) -> Iterator[Any | RowError]:
    text.position += 1
    while text.peek() != "]":
        yield _element(text)
        text.row += 1
        if text.text[text.position] == ",":
            text.position += 1
    text.position += 1
    if text.peek():
        raise _InvalidJsonError(f"unexpected text after the list of {text.row} rows")


def _element(text: _Window) -> Any | RowError:
    """Parse a list element and advance to the comma or bracket after it."""
    value: Any
    try:
        value = text.value(strict=False)
    except _BadRowError as error:
        if not text.skip_element():
            if isinstance(error, _InvalidJsonError):
                raise
            raise _InvalidJsonError("the file ends within the row") from error
        value = _unusable(error)
    follows = text.peek()
    if follows not in (",", "]"):
        raise _InvalidJsonError(f"unexpected {follows!r} after the row" if follows else "the file ends within the list")
    return value


def _lines(text: _Window) -> Iterator[Any | RowError]:
    """Iterate over values separated by white space. An invalid one is skipped to the end of its line.

    Raises:
        _InvalidJsonError: no line is valid.
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
            if held is not None and isinstance(error, _InvalidJsonError) and len(held) < MAX_INVALID_START:
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

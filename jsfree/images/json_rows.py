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
_CUT = 12
"""Characters at the end of the window in which an error may only mean that the window ends there."""
_SCANNERS: dict[bool, Scanner] = {
    strict: json.JSONDecoder(strict=strict).scan_once  # type: ignore[attr-defined]
    for strict in (False, True)
}
_SPACES = " \t\n\r"
_FOLLOWS = f"{_SPACES},]}}"
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}]*")


def json_rows(file: IO[bytes], path: str) -> Iterator[Any | RowError]:
    """The rows of a JSON list, or the values of JSON lines; one that cannot be parsed is a RowError.

    Args:
        file: open for reading, at its beginning; UTF-8, UTF-16 or UTF-32.
        path: what messages call it.

    Raises:
        SourceError: the file is neither; in a list, what follows an error in the syntax cannot be told apart.
    """
    text = _Window(file, path)
    try:
        first = text.peek()
        if first == "[":
            yield from _list(text)
        elif first == "{":
            yield from _lines(text)
        else:
            raise _not_rows(path, text.value(strict=True))
    except _InvalidJsonError as error:
        raise SourceError(
            f"{path} is no valid JSON (row {text.row}: {error}); it must be one list of rows, or have a row a line"
        ) from error


class _InvalidJsonError(Exception):
    """The text is no JSON; the message says why, and where in the row."""


class _Window:
    """A part of a text that is read on as needed; ``position`` is where the next value begins."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self.path = path
        self.row = 0
        self.position = 0
        self.text = ""
        self._file = file
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
            raise _InvalidJsonError(str(error)) from error
        self.text = self.text[self.position :] + more
        self.position = 0

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        if len(self.text) - self.position > LONGEST_ROW:
            raise SourceError(f"{self.path}: row {self.row} has more than {LONGEST_ROW} characters; remove it")
        self._append(self._file.read(max(WINDOW, len(self.text) - self.position)))
        return True

    def peek(self) -> str:
        """The next character that is no white space, at ``position``; empty at the end."""
        while True:
            if self.text[self.position : self.position + 1] in _SPACES:
                self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def value(self, *, strict: bool) -> Any | RowError:
        """The value at ``position``, which moves behind it; a RowError for one that Python cannot hold.

        Args:
            strict: refuse control characters in strings, such as the end of a line.

        Raises:
            _InvalidJsonError: there is no valid value.
        """
        scan = _SCANNERS[strict]
        while True:
            try:
                value, end = scan(self.text, self.position)
            except StopIteration as error:
                self._require_cut("Expecting value", int(error.value))
            except json.JSONDecodeError as error:
                self._require_cut(error.msg, error.pos)
            except (RecursionError, ValueError) as error:
                self._skip()
                what = (
                    "is nested too deeply" if isinstance(error, RecursionError) else "has a number of too many digits"
                )
                return RowError("malformed", f"{what}; correct or remove the row")
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
            if not self.more():
                self.position = len(self.text)
                return
        self.position = end + 1

    def _skip(self) -> None:
        """Move behind the value at ``position`` without parsing it."""
        while True:
            if self.text[self.position] not in '[{"':
                end = _SCALAR.match(self.text, self.position).end()  # type: ignore[union-attr]
                if end < len(self.text) or self._ended:
                    self.position = end
                    return
            elif end := self._end_of_value():
                self.position = end
                return
            if not self.more():
                raise _InvalidJsonError("the file ends within it")

    def _end_of_value(self) -> int | None:
        depth = 0
        for token in _TOKEN.finditer(self.text, self.position):
            if token[0] == '"':
                return None  # a string that the window cuts off
            depth += token[0] in "[{"
            depth -= token[0] in "]}"
            if depth == 0:
                return token.end()
        return None


def _list(text: _Window) -> Iterator[Any | RowError]:
    text.position += 1
    if text.peek() == "]":
        text.position += 1
    else:
        while True:
            text.peek()
            yield text.value(strict=False)
            follows = text.peek()
            if follows not in (",", "]"):
                raise _InvalidJsonError(f"{follows!r} follows it" if follows else "the file ends within the list")
            text.position += 1
            text.row += 1
            if follows == "]":
                break
    if text.peek():
        raise SourceError(f"{text.path} is no valid JSON (more text follows the list of {text.row} rows); remove it")


def _lines(text: _Window) -> Iterator[Any | RowError]:
    """Values that only white space separates; one that cannot be parsed is passed over to the end of its line."""
    first = None
    while text.peek():
        try:
            value = text.value(strict=True)
        except _InvalidJsonError as error:
            value = RowError("malformed", f"is no valid JSON ({error}); correct or remove the line")
            text.skip_line()
        text.row += 1
        if text.row > 1:
            yield from () if first is None else (first,)
            first = None
            yield value
        else:
            first = value
    if text.row == 1 and isinstance(first, dict) and "image" not in first:
        raise _not_rows(text.path, first)
    if first is not None:
        yield first


def _not_rows(path: str, value: Any) -> SourceError:
    return SourceError(f"{path}: expected a list of rows with the key 'image', found {type(value).__name__}")

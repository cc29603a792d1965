"""What tables and files cannot hold is refused, or written so that they can."""

import pyarrow as pa
import pytest

from jsfree.errors import RowError
from jsfree.texts import MAX_SHOWN, is_text, printable, readable, require_text


@pytest.mark.parametrize("text", ["", "a cat", "caf\u00e9 \u4e2d \U0001f600", "\x01\x7f\n\ufeff\ufffe"])
def test_any_unicode_is_text(text):
    assert is_text(text)
    assert require_text(text, "it") == readable(text) == text


@pytest.mark.parametrize(
    ("text", "shown", "message"),
    [
        ("\u00e9\ud83d", "\u00e9\\ud83d", "it contains U+D83D at character 1, a lone surrogate"),
        ("caf\udce9", "caf\\xe9", "it contains U+DCE9 at character 3, "),
        ("\udce9\ud83d", "\\udce9\\ud83d", "it contains U+DCE9 at character 0, "),
    ],
)
def test_what_is_no_unicode_is_named_and_can_be_shown(text, shown, message):
    assert not is_text(text)
    assert readable(text) == printable(text) == shown
    pa.array([shown])
    with pytest.raises(RowError) as error:
        require_text(text, "it")
    assert error.value.kind == "malformed"
    assert message in str(error.value)


def test_a_zero_character_is_refused_and_escaped():
    with pytest.raises(RowError, match="it contains a null character at 1"):
        require_text("a\0b", "it")
    assert printable("a\0b") == "a\\0b"
    assert printable("x" * 1000) == "x" * MAX_SHOWN + "..."

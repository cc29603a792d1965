"""Text that tables and files cannot store is refused or escaped."""

import pyarrow as pa
import pytest

from jsfree.errors import RowError
from jsfree.texts import MAX_SHOWN, is_text, printable, readable, require_text


@pytest.mark.parametrize("text", ["", "a cat", "caf\u00e9 \u4e2d \U0001f600", "\x01\x7f\n\ufeff\ufffe"])
def test_any_valid_unicode_is_accepted(text):
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
def test_invalid_unicode_is_refused_with_its_position_and_escaped(text, shown, message):
    assert not is_text(text)
    assert readable(text) == printable(text) == shown
    pa.array([shown])
    with pytest.raises(RowError) as error:
        require_text(text, "it")
    assert error.value.kind == "malformed"
    assert message in str(error.value)


def test_a_null_character_is_refused_and_escaped():
    with pytest.raises(RowError, match="it contains a null character at 1"):
        require_text("a\0b", "it")
    assert printable("a\0b") == "a\\0b"
    assert printable("x" * 1000) == "x" * MAX_SHOWN + "..."

"""Text of captions while they are decoded: never half a character, never more than the caption."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from serve.engines.texts import IncrementalText, TokenTexts, longest_stop_prefix
from tests.support.families.builders import BUILDERS


class Spelling:
    """What streaming needs of a captioner: its tokenizer."""

    def __init__(self, tokenizer) -> None:
        self.processor = type("Processor", (), {"tokenizer": tokenizer})

    def decode(self, ids) -> str:
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)


@pytest.fixture(scope="module")
def sentencepiece() -> Spelling:
    """A tokenizer with a token for each byte, as Llama's."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁red", "▁box", "."]
    bpe = models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return Spelling(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


def spelt(spelling: Spelling, *words: str) -> list[int]:
    """Token ids of words, and of the bytes of other texts."""
    tokenizer, ids = spelling.processor.tokenizer, []
    for word in words:
        known = tokenizer.convert_tokens_to_ids(word)
        ids += [1 + byte for byte in word.encode()] if known == tokenizer.unk_token_id else [known]
    return ids


def streamed(spelling, ids: list[int], stops=()) -> list[str]:
    """The parts of a caption of some tokens, token by token, and at its end."""
    text = IncrementalText(spelling, TokenTexts(spelling), stops)
    lengths = range(1, len(ids) + 1)
    ids = next((ids[:n] for n in lengths if any(stop in spelling.decode(ids[:n]) for stop in stops)), ids)
    parts = [text.advance(ids[:length]) for length in range(1, len(ids))]
    whole = spelling.decode(ids)
    ends = [whole.index(stop) for stop in stops if stop in whole]
    return [*parts, text.finish(whole[: min(ends)].lstrip() if ends else whole.strip())]


def test_characters_of_several_byte_tokens_are_sent_whole(sentencepiece):
    ids = spelt(sentencepiece, "▁a", "é", "🎈", "▁red", "🎈", "▁box", ".")
    parts = streamed(sentencepiece, ids)
    assert "".join(parts) == sentencepiece.decode(ids) == "aé🎈 red🎈 box."
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
    assert sum(bool(part) for part in parts) > 3


def test_bytes_that_are_no_text_come_as_in_the_whole_caption(sentencepiece):
    ids = spelt(sentencepiece, "▁a", "é", "🎈")[:-1]
    assert "".join(streamed(sentencepiece, ids)) == sentencepiece.decode(ids).strip()


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "Qwen2.5-VL"])
def test_characters_of_several_byte_level_tokens_are_sent_whole(name):
    captioner = BUILDERS[name]()
    text = "A 🎈 and naïve café — 漢字, a\nred 👩‍👩‍👧 box."
    ids = captioner.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = streamed(captioner, ids)
    assert "".join(parts) == captioner.text(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
    texts = TokenTexts(captioner)
    assert b"".join(texts.text(token).content for token in ids).decode() == captioner.decode(ids)


@pytest.mark.parametrize("stops", [["red b"], [" red"], ["box.", "zebra"], [" red box"]])
def test_a_stop_string_is_held_back(sentencepiece, stops):
    ids = spelt(sentencepiece, "▁a", "▁red", "▁a", "▁red", "▁box", ".")
    parts, whole = streamed(sentencepiece, ids, stops), sentencepiece.decode(ids)
    assert "".join(parts) == whole[: min(whole.index(stop) for stop in stops if stop in whole)]


def test_the_bytes_of_tokens(sentencepiece):
    texts = TokenTexts(sentencepiece)
    assert [texts.text(token).content for token in spelt(sentencepiece, "▁red", "é")] == [b" red", b"\xc3", b"\xa9"]
    assert texts.text(spelt(sentencepiece, "é")[0]).text == "\\xc3"


def test_the_longest_beginning_of_a_stop_at_the_end():
    assert longest_stop_prefix("a red b", ["bo", "d box"]) == 3
    assert longest_stop_prefix("a red", ["zebra"]) == 0
    assert longest_stop_prefix("aaa", ["aaab"]) == 3

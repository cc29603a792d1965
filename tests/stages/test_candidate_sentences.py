"""Candidates are split into sentences that keep their own tokens, log-probabilities and cosines."""

import math

import pytest

from jsfree.stages.candidate_sentences import ending, split_candidate
from jsfree.stages.token_offsets import TokenOffsets


def candidate(pieces: list[str], sentences: list[tuple[str, float]], finish: str = "stop") -> dict:
    """A candidate whose tokens are ``pieces`` of its text; an empty piece is an end token."""
    text = "".join(pieces).strip()
    lead = len("".join(pieces)) - len("".join(pieces).lstrip())
    ends = [min(len("".join(pieces[: count + 1])) - lead, len(text)) for count in range(len(pieces))]
    scored = [{"text": part, "score": score} for part, score in sentences]
    tokens = list(range(100, 100 + len(pieces)))
    logps = [-float(number) for number in range(len(pieces))]
    return {
        "role": "low", "text": text, "token_ids": tokens, "logps": logps, "unconditional_logps": [], "ends": ends,
        "finish": finish, "sentences": scored, "ratio": 0.0,
    }  # fmt: skip


def test_every_token_but_the_ending_belongs_to_a_sentence():
    given = candidate([" A", " cup", ".", " A", " dog", " here", ".", ""], [("A cup.", 0.5), ("A dog here.", 0.25)])
    first, second = split_candidate(given)
    assert (first.text, first.token_ids, first.cosine) == ("A cup.", (100, 101, 102), 0.5)
    assert (second.text, second.token_ids, second.cosine) == ("A dog here.", (103, 104, 105, 106), 0.25)
    assert second.logps == (-3.0, -4.0, -5.0, -6.0)
    assert second.probability == pytest.approx(math.exp(-4.5))
    assert ending(given) == (107,)


def test_a_word_has_the_log_probability_of_all_its_tokens():
    given = candidate(
        ["1.", " A", " re", "frig", "er", "ator", " and", " a", " CUP", "."],
        [("A refrigerator and a CUP.", 0.5)],
        "length",
    )
    (sentence,) = split_candidate(given)
    assert sentence.word_logps == {"a": -1.0, "refrigerator": -14.0, "and": -6.0, "cup": -8.0}
    assert sentence.unconditional_word_logps == {}
    given["unconditional_logps"] = [2 * logp for logp in given["logps"]]
    (sentence,) = split_candidate(given)
    assert sentence.unconditional_word_logps == {"a": -2.0, "refrigerator": -28.0, "and": -12.0, "cup": -16.0}


def test_characters_of_scripts_without_blanks_are_words():
    given = candidate(["\u732b", "\u3068\u72ac", "\u3002"], [("\u732b\u3068\u72ac\u3002", 0.5)], "length")
    (sentence,) = split_candidate(given)
    assert sentence.word_logps == {"\u732b": 0.0, "\u3068": -1.0, "\u72ac": -1.0}


def test_list_markers_belong_to_the_sentence_after_them():
    given = candidate(["1.", " A", " cup", ".", "\n2.", " A", " dog", ".", ""], [("A cup.", 0.5), ("A dog.", 0.25)])
    assert [sentence.token_ids for sentence in split_candidate(given)] == [(100, 101, 102, 103), (104, 105, 106, 107)]


def test_a_sentence_of_several_parts_has_the_lowest_cosine():
    given = candidate([" A", " cup", ",", " and", " a", " dog", "."], [("A cup,", 0.5), ("and a dog.", 0.25)], "length")
    (sentence,) = split_candidate(given)
    assert (sentence.text, sentence.cosine) == ("A cup, and a dog.", 0.25)
    assert len(sentence.token_ids) == 7
    assert ending(given) == ()


def test_a_repeated_sentence_is_split_each_time():
    given = candidate([" A", " cup", ".", " A", " cup", "."], [("A cup.", 0.5), ("A cup.", 0.5)], "length")
    assert [sentence.token_ids for sentence in split_candidate(given)] == [(100, 101, 102), (103, 104, 105)]


def test_a_caption_without_text_has_no_sentences():
    assert split_candidate(candidate(["", ""], [])) == []


TEXTS = ["A cup.", "  A  cup\n\n- a café, 漢字 \U0001f600!", "é", "naïve \U0001f468\u200d\U0001f469 x", "..."]


@pytest.mark.parametrize("text", TEXTS)
def test_token_ends_are_positions_in_the_decoded_text(captioner, text):
    tokenizer = captioner.processor.tokenizer
    tokens = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    shown = captioner.text(tokens)
    ends = TokenOffsets(captioner).ends(tokens, shown)
    assert ends[-2:] == [len(shown)] * 2
    assert ends == sorted(ends)
    decoded = captioner.decode(tokens)
    lead = len(decoded) - len(decoded.lstrip())
    for count, end in enumerate(ends[:-1], 1):
        assert end == min(max(len(captioner.decode(tokens[:count])) - lead, 0), len(shown))


def test_token_ends_stop_at_a_shortened_text(captioner):
    tokens = captioner.processor.tokenizer(" This is a kitchen. There is", add_special_tokens=False).input_ids
    assert max(TokenOffsets(captioner).ends(tokens, "This is")) == len("This is")
    assert TokenOffsets(captioner).ends([], "") == []

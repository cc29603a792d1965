"""Imported captions are tokenized into the tokens that the captioner would have generated."""

import json

import pytest

from jsfree.config import Imported, build
from jsfree.errors import RowError
from jsfree.exchange import UnusableRecord
from jsfree.exchange.pairs import CaptionTokens, ImportedPairs, samples
from jsfree.exchange.preferences import Preference
from jsfree.images.sources import training_samples
from jsfree.models.references import WEIGHTS
from jsfree.schemas import sample_id
from jsfree.stages.captioning import PairGenerator

SETTINGS = Imported(format="trl", path="/unused", max_tokens=40)
IMAGE = {"id": "a", "uri": "/a.png", "bytes": None, "sha256": None}


@pytest.fixture(scope="module")
def tokens() -> CaptionTokens:
    return CaptionTokens(WEIGHTS / "captioner", max_tokens=512)


def pair(**texts) -> Preference:
    return Preference("a", IMAGE, **{"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", **texts})


def test_tokens_equal_the_generated_ones(tokens):
    """Only greedy captions are compared: sampling may split a word into tokens that the tokenizer would not choose."""
    config = build({"source": {"count": 6}, "generate": {"decoding": {"temperature": 0}}}, where="test")
    rows = PairGenerator(config, "miniworld:captioner", round_number=1)(training_samples(config, 1)).rows
    captions = [row["low"] for row in rows if row["low"]["finish"] == "stop"]
    assert len(captions) >= 4
    assert [tokens.of(config.prompt, each["text"]) for each in captions] == [each["token_ids"] for each in captions]


def test_tokens_decode_to_their_text_and_end_with_eos(captioner, tokens):
    text = "Zwölf Katzen — 12 °C!\nNext line."
    ids = tokens.of("What is it?", text)
    assert captioner.text(ids) == text
    assert ids[-1] in captioner.eos_ids
    assert not set(ids[:-1]) & captioner.eos_ids


@pytest.mark.parametrize(
    ("texts", "kind", "told"),
    [
        ({"chosen": "A cat.</s>"}, "special_token", "the chosen caption contains '</s>', a special token"),
        ({"rejected": "A <pad> dog."}, "special_token", "the rejected caption contains '<pad>'"),
        ({"rejected": "dog " * 60}, "too_long", "the limit is 40; raise 'imported.max_tokens'"),
    ],
)
def test_an_untrainable_caption_is_an_error_row(texts, kind, told):
    output = ImportedPairs(build({}, where="test"), SETTINGS, "miniworld:captioner")([pair(), pair(**texts)])
    assert [row["low"]["text"] for row in output.rows] == ["A cat."]
    (error,) = output.errors
    assert (error["kind"], error["stage"]) == (kind, "pairs")
    assert told in error["message"]


def test_imported_rows_have_null_ratios_and_unusable_records_are_errors():
    unusable = UnusableRecord("b.jsonl:3", RowError("no_image", "b.jsonl, row 3: nothing there"))
    output = ImportedPairs(build({"seed": 3}, where="test"), SETTINGS, "miniworld:captioner")([pair(), unusable])
    (row,) = output.rows
    assert row["sample_id"] == sample_id("a", "What?")
    assert (row["low"]["text"], row["high"]["text"]) == ("A cat.", "A dog.")
    assert (row["low"]["ratio"], row["high"]["ratio"], row["low"]["finish"]) == (None, None, "stop")
    assert not output.errors
    listed = samples([pair(), unusable])
    assert [each["prompt"] for each in listed.rows] == ["What?"]
    assert json.dumps(listed.errors) == json.dumps(
        [{"sample_id": "b.jsonl:3", "stage": "samples", "kind": "no_image", "message": "b.jsonl, row 3: nothing there"}]
    )

"""The captioner's judgements equal its next-token probabilities one question at a time, and bad rows become errors."""

import pyarrow as pa
import pytest
import torch

from jsfree import config
from jsfree.errors import ConfigError, ModelError
from jsfree.images.decoding import load_image
from jsfree.miniworld import world
from jsfree.schemas import PAIRS, SCORED_WITH_CANDIDATES
from jsfree.stages import judging
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.judging import CaptionerJudge, answer_ids
from tests.stages.test_captioning import sample

SETTINGS = config.load(None, ["score.judge=captioner", "generate.samples=1", "generate.decoding.max_new_tokens=30"])


@pytest.fixture(scope="module")
def pairs():
    return PairGenerator(SETTINGS, "miniworld:captioner", 1)([sample(index) for index in range(7)]).rows


@pytest.fixture(scope="module")
def judge():
    return CaptionerJudge(SETTINGS, "miniworld:captioner")


def asked_alone(captioner, pair, sentence) -> float:
    """p(yes) / (p(yes) + p(no)) by a forward pass for one question, with the answers' tokens written out."""
    ids = captioner.prompt_ids(f"Is this true? {sentence}", captioner.blank)
    pixels = captioner.batch([captioner.inputs(load_image(pair["image"], SETTINGS.source).image)])["pixel_values"]
    with torch.no_grad():
        logits = captioner.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1].double()
    yes, no = (captioner.processor.tokenizer.convert_tokens_to_ids(f"\u0120{answer}") for answer in ("Yes", "No"))
    probs = torch.softmax(logits, -1)
    return float(probs[yes] / (probs[yes] + probs[no]))


@pytest.mark.parametrize(
    "limits", [(512, 8192), (40, 300), (1, 1)], ids=["few rows", "many rows", "one question a row"]
)
def test_scores_equal_those_of_one_question_at_a_time(pairs, judge, captioner, limits, monkeypatch):
    monkeypatch.setattr(judging, "QUESTION_TOKENS", limits[0])
    monkeypatch.setattr(judging, "POSITIONS_AT_ONCE", limits[1])
    rows = judge(pairs).rows
    assert [row["sample_id"] for row in rows] == [pair["sample_id"] for pair in pairs]
    for pair, row in zip(pairs[:3], rows, strict=False):
        for caption in (row["low"], row["high"], *row["candidates"]):
            expected = [asked_alone(captioner, pair, each["text"]) for each in caption["sentences"]]
            assert [each["score"] for each in caption["sentences"]] == pytest.approx(expected, abs=1e-4)
            assert " ".join(each["text"] for each in caption["sentences"]) == caption["text"]
        for role in ("low", "high"):
            scores = [each["score"] for each in row[role]["sentences"]]
            assert row[role]["score"] == pytest.approx(sum(scores) / len(scores))
            assert {name: row[role][name] for name in pair[role]} == pair[role]
        assert row["inverted"] == (row["low"]["score"] < row["high"]["score"])
        assert row["gap"] == pytest.approx(abs(row["low"]["score"] - row["high"]["score"]))


def test_rows_fit_the_table_of_scored_pairs(pairs, judge):
    output = judge(pairs)
    assert pa.Table.from_pylist(output.rows, schema=SCORED_WITH_CANDIDATES).num_rows == len(pairs)
    assert not output.errors


def test_the_image_is_prefilled_once_for_all_questions_about_it(pairs, judge, captioner):
    (row,) = judge(pairs[:1]).rows
    asked = {each["text"] for caption in row["candidates"] for each in caption["sentences"]}
    visual = 16
    whole = sum(len(captioner.prompt_ids(f"Is this true? {each}", captioner.blank)) + 1 for each in asked)
    assert len(asked) > 3
    assert visual < judge(pairs[:1]).tokens <= whole - visual * (len(asked) - 1)


def test_the_captioner_mostly_tells_true_sentences_from_false_ones(judge):
    true, false = [], []
    for index in range(12):
        scene, other = (world.scene("development", number) for number in (index, index + 100))
        texts = {"low": world.true_caption(scene), "high": world.true_caption(other)}
        captions = {
            role: {"ratio": 0.0, "text": text, "token_ids": [], "finish": "stop"} for role, text in texts.items()
        }
        (row,) = judge([{**sample(index), **captions, "seed": 0}]).rows
        true.append(row["low"]["score"])
        false.append(row["high"]["score"])
    assert sum(a > b for a, b in zip(true, false, strict=True)) >= 11


def test_a_bad_image_and_a_caption_without_a_sentence_become_error_rows(pairs, judge):
    first, broken, silent, last = ({name: pair[name] for name in PAIRS.names} for pair in pairs[:4])
    broken["image"] = {**broken["image"], "bytes": b"no image", "sha256": None}
    silent["high"] = {**silent["high"], "text": "..."}
    output = judge([first, broken, silent, last])
    assert [row["sample_id"] for row in output.rows] == [pairs[0]["sample_id"], pairs[3]["sample_id"]]
    assert [(row["sample_id"], row["stage"], row["kind"]) for row in output.errors] == [
        (pairs[1]["sample_id"], "scored", "undecodable"),
        (pairs[2]["sample_id"], "scored", "no_sentence"),
    ]


class Tokenizer:
    """A tokenizer of characters, with some words as single tokens."""

    unk_token_id = 0
    bos_token = None

    def __init__(self, **words):
        self._words = words

    def __call__(self, text, **_):
        head, _, last = text.rpartition(" ")
        if last in self._words:
            return {"input_ids": [*map(ord, head), self._words[last]]}
        return {"input_ids": [*map(ord, text)]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"Yes": 5}, r"no single token for the answer 'No' after the question 'Is it\?' \(score\.question\)"),
        ({"Yes": 0, "No": 6}, r"no single token for the answer 'Yes'"),
        ({"Yes": 7, "No": 7}, r"same token for 'Yes' and 'No'; set 'score\.judge: clip'"),
    ],
)
def test_a_tokenizer_without_tokens_for_the_answers_is_refused(captioner, words, message, monkeypatch):
    monkeypatch.setattr(captioner.processor, "tokenizer", Tokenizer(**words))
    monkeypatch.setattr(judging, "conditional_prompt", lambda _, question, __: f"USER: <image> {question} ASSISTANT:")
    with pytest.raises(ModelError, match=message):
        answer_ids(captioner, "Is it?")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["score.judge=captioner", "score.with_generation=true"], r"scores pairs in a stage of its own"),
        (["score.question=Is it true?"], r"'question' must contain '{sentence}' exactly once"),
    ],
)
def test_contradictory_settings_of_the_judge_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(None, override)


def test_scores_of_older_runs_and_of_evaluation_captions_stay_valid():
    plain, judged = config.RunConfig(), config.load(None, ["score.judge=captioner"])
    assert plain.clip_fingerprint == plain.fingerprint("clip", "score") == judged.clip_fingerprint
    assert judged.fingerprint("score") != plain.fingerprint("score")

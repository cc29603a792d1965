"""Log-probabilities of stored candidates equal those of separate forward passes, and those recorded while decoding."""

import pytest
import torch

from jsfree import config
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.likelihoods import LikelihoodScorer

SETTINGS = config.load(None, ["source.count=11", "generate.samples=2", "generate.decoding.max_new_tokens=30"])


@pytest.fixture(scope="module")
def rows():
    return PairGenerator(SETTINGS, "miniworld:captioner", 1)(training_samples(SETTINGS, 1)).rows


def test_every_image_has_all_candidates_with_their_ratios(rows):
    assert len(rows) == 11
    for row in rows:
        low, high, *further = row["candidates"]
        assert [each["role"] for each in row["candidates"]] == ["low", "high", "sample-1", "sample-2"]
        for role, each in (("low", low), ("high", high)):
            assert {name: each[name] for name in row[role]} == row[role]
        assert all(each["ratio"] == 0.0 for each in further)
        assert len({each["text"] for each in row["candidates"]}) > 1
        assert all(len(each["logps"]) == len(each["token_ids"]) == len(each["ends"]) for each in row["candidates"])


def test_the_pair_does_not_depend_on_further_samples(rows):
    plain = config.load(None, ["source.count=11", "generate.decoding.max_new_tokens=30"])
    without = PairGenerator(plain, "miniworld:captioner", 1)(training_samples(plain, 1)).rows
    assert [(row["low"], row["high"]) for row in without] == [(row["low"], row["high"]) for row in rows]
    assert "candidates" not in without[0]


def test_log_probabilities_equal_those_of_separate_forward_passes(rows, captioner):
    output = LikelihoodScorer(SETTINGS, "miniworld:captioner")(rows)
    assert [row["sample_id"] for row in output.rows] == [row["sample_id"] for row in rows]
    assert output.tokens == sum(len(each["token_ids"]) for row in rows for each in row["candidates"])
    for row, found in zip(rows, output.rows, strict=True):
        for candidate, logps in zip(row["candidates"], found["logps"], strict=True):
            assert logps == pytest.approx(alone(captioner, row, candidate["token_ids"]), abs=1e-4)
            assert logps == pytest.approx(candidate["logps"], abs=1e-4)


def alone(captioner, row, tokens) -> list[float]:
    prompt = captioner.prompt_ids(row["prompt"], captioner.blank)
    pixels = captioner.batch([captioner.inputs(load_image(row["image"], SETTINGS.source).image)])["pixel_values"]
    with torch.no_grad():
        logits = captioner.model(input_ids=torch.tensor([[*prompt, *tokens]]), pixel_values=pixels).logits[0].double()
    logits[:, list(captioner.suppressed_ids)] = -torch.inf
    logps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return [float(logps[number, token]) for number, token in enumerate(tokens)]


def test_an_unreadable_image_becomes_an_error_row(rows):
    broken = {**rows[1], "image": {**rows[1]["image"], "bytes": b"no image"}}
    output = LikelihoodScorer(SETTINGS, "miniworld:captioner")([rows[0], broken, rows[2]])
    assert [row["sample_id"] for row in output.rows] == [rows[0]["sample_id"], rows[2]["sample_id"]]
    assert [error["sample_id"] for error in output.errors] == [rows[1]["sample_id"]]


def test_log_probabilities_are_over_the_views_that_the_captions_were_decoded_with():
    overrides = ["source.count=4", "generate.samples=1", "generate.decoding.max_new_tokens=12"]
    settings = config.load(None, [*overrides, "generate.decoding.views={count: 3, shift: 4}"])
    rows = PairGenerator(settings, "miniworld:captioner", 1)(training_samples(settings, 1)).rows
    (found, *_), one_view = LikelihoodScorer(settings, "miniworld:captioner")(rows).rows, config.load(None, overrides)
    for candidate, logps in zip(rows[0]["candidates"], found["logps"], strict=True):
        assert logps == pytest.approx(candidate["logps"], abs=1e-4)
    (other, *_) = LikelihoodScorer(one_view, "miniworld:captioner")(rows).rows
    assert other["logps"][0] != pytest.approx(found["logps"][0], abs=1e-2)

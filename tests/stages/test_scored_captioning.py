"""Generating and scoring in one pass gives the same results as two separate stages."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from jsfree import config
from jsfree.images import decoding
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.stages.captioning import CaptionWriter, PairGenerator
from jsfree.stages.scored_captioning import ScoredCaptionWriter, ScoredPairGenerator
from jsfree.stages.scoring import ClipScorer

SHARD = 70  # more than one embedding batch


@pytest.fixture(scope="module")
def settings():
    return config.load(None, ["source.count=150", "generate.decoding.max_new_tokens=24"])


@pytest.fixture(scope="module")
def shards(settings):
    samples = list(training_samples(settings, 1))
    samples[3]["image"]["bytes"] = b"no image"
    return [samples[:SHARD], samples[SHARD:]]


@pytest.fixture(scope="module")
def in_two(settings, shards):
    generate, score = PairGenerator(settings, "miniworld:captioner", 1), ClipScorer(settings)
    pairs = [generate(shard) for shard in shards]
    return [(each, score(each.rows)) for each in pairs]


def test_one_pass_matches_two_stages(settings, shards, in_two):
    one_pass = ScoredPairGenerator(settings, "miniworld:captioner", 1)
    with ThreadPoolExecutor(2) as threads:  # a worker processes two shards at a time
        outputs = list(threads.map(one_pass, shards))
    for output, (pairs, scored) in zip(outputs, in_two, strict=True):
        assert output.rows == pairs.rows
        assert output.errors == pairs.errors
        assert output.second_stage.rows == scored.rows
        assert output.second_stage.tokens == scored.tokens
        assert output.second_stage_seconds > 0
    assert [len(output.errors) for output in outputs] == [1, 0]


def test_one_pass_matches_two_stages_for_evaluation_captions():
    settings = config.load(None, ["evaluate.source.count=70", "evaluate.modes={greedy: {max_new_tokens: 24}}"])
    samples = list(evaluation_samples(settings))
    samples[3]["image"]["bytes"] = b"no image"
    written = CaptionWriter(settings, "miniworld:captioner", "m0", "greedy")(samples)
    scored = ClipScorer(settings).score_rows(written.rows)
    output = ScoredCaptionWriter(settings, "miniworld:captioner", "m0", "greedy")(samples)
    assert len(output.rows) == SHARD - 1
    assert (output.rows, output.errors, output.tokens) == (written.rows, written.errors, written.tokens)
    assert (output.second_stage.rows, output.second_stage.errors, output.second_stage.tokens) == (
        scored.rows,
        [],
        scored.tokens,
    )


def test_each_image_is_decoded_once(settings, shards, monkeypatch):
    decoded = []
    real = decoding.upright_rgb
    monkeypatch.setattr(decoding, "upright_rgb", lambda image: decoded.append(image.tobytes()) or real(image))
    ScoredPairGenerator(settings, "miniworld:captioner", 1)(shards[1][:10])
    assert len(decoded) == len(set(decoded)) == 10

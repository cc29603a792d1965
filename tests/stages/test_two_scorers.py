"""Two scorers score the same pairs: each as it would alone, inverted only if both say so."""

import pyarrow as pa
import pytest

from jsfree import config, schemas
from jsfree.errors import ConfigError
from jsfree.stages.scoring import ClipScorer
from jsfree.stages.two_scorers import TwoScorers, pair_scorer
from tests.stages.test_scoring import pair
from tests.support import tiny_clips

TEXTS = ["A cup. A dog runs.", "A red ball.", "Two men with hats. A horse.", "a very large brown table", "The cat."]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A causal scorer with a context of 24 tokens, and one like SigLIP with 16."""
    folder = tmp_path_factory.mktemp("clips")
    refs = [str(tiny_clips.write(folder / kind, kind, seed)) for seed, kind in enumerate(("laion", "siglip"))]
    return config.build({"clip": {"ref": refs[0], "second": {"ref": refs[1]}}}, where="test")


@pytest.fixture(scope="module")
def alone(settings):
    return [ClipScorer(settings, model=model) for model in settings.clip.scorers]


@pytest.fixture(scope="module")
def both(settings):
    return pair_scorer(settings)


@pytest.fixture
def pairs():
    chosen = [(number, low, high) for number in range(3) for low in TEXTS for high in TEXTS if low != high]
    return [{**pair(number, low, high), "sample_id": f"{at}"} for at, (number, low, high) in enumerate(chosen)]


def test_each_scorer_scores_as_alone_and_both_must_invert(both, alone, pairs):
    assert isinstance(both, TwoScorers)
    output = both(pairs)
    first, second = (scorer(pairs) for scorer in alone)
    assert output.errors == []
    assert output.tokens == first.tokens + second.tokens
    kinds = set()
    for row, own, other in zip(output.rows, first.rows, second.rows, strict=True):
        assert (row["low"], row["high"], row["gap"]) == (own["low"], own["high"], own["gap"])
        for role in ("low", "high"):
            assert row[f"second_{role}"] == {key: other[role][key] for key in ("sentences", "score")}
        assert row["inverted"] == (own["inverted"] and other["inverted"])
        kinds.add((own["inverted"], other["inverted"]))
    assert len(kinds) == 4  # the pairs are a test of every case
    schema = schemas.scored_schema(0, 2)
    assert pa.Table.from_pylist(output.rows, schema).to_pylist() == output.rows


def test_the_contexts_divide_long_sentences_differently(both, pairs):
    long = "a dog and a cat and a horse and a man and a ball and a cup"
    row = both([{**pairs[0], "low": {**pairs[0]["low"], "text": long}}]).rows[0]
    assert len(row["low"]["sentences"]) == 1
    assert len(row["second_low"]["sentences"]) == 2


def test_a_pair_that_cannot_be_scored_has_one_error_row(both, pairs):
    broken = {**pairs[1], "image": {"id": "broken.png", "uri": None, "bytes": b"no image", "sha256": None}}
    silent = {**pairs[2], "low": {**pairs[2]["low"], "text": " "}}
    output = both([pairs[0], broken, silent])
    assert [row["sample_id"] for row in output.rows] == [pairs[0]["sample_id"]]
    assert [(error["sample_id"], error["kind"]) for error in output.errors] == [
        (broken["sample_id"], "undecodable"),
        (silent["sample_id"], "no_sentence"),
    ]
    assert both([]).rows == []


def test_further_candidates_are_scored_by_the_first_scorer_only(both, pairs):
    candidate = {**pairs[0]["low"], "role": "sample-1", "text": "A horse.", "logps": [], "ends": []}
    output = both([{**pairs[0], "candidates": [candidate]}])
    assert output.rows[0]["candidates"][0]["sentences"][0]["text"] == "A horse."
    plain = both([pairs[0]])
    assert output.rows[0]["second_low"] == plain.rows[0]["second_low"]


def test_older_runs_have_one_scorer_and_the_fingerprints_they_had():
    plain = config.build({"clip": {"ref": "owner/clip"}}, where="test")
    second = {"ref": "ViT-SO400M-16-SigLIP2-384", "pretrained": "webli"}
    two = config.build({"clip": {"ref": "owner/clip", "second": second}}, where="test")
    assert plain.fingerprint("clip") == config.RunConfig(clip=config.ClipSettings(ref="owner/clip")).fingerprint("clip")
    assert "second" not in config.settings.fingerprinted_settings(plain)["clip"]
    assert plain.fingerprint("clip") != two.fingerprint("clip")
    assert plain.clip_fingerprint == two.clip_fingerprint  # captions of the evaluation are scored by the first only
    other = config.build({"clip": {"ref": "owner/clip", "second": {**second, "pretrained": "x"}}}, where="test")
    assert two.fingerprint("clip.second") != other.fingerprint("clip.second")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": {"second": {"ref": "miniworld:clip"}}}, "is the same model as the first"),
        (
            {"clip": {"second": {"ref": "a/b"}}, "generate": {"samples": 2}, "select": {"strategy": "coverage"}},
            "'clip.second' requires 'select.strategy: gap'",
        ),
        ({"clip": {"second": {"ref": "a/b"}}, "score": {"judge": "captioner"}}, "requires 'score.judge: clip'"),
        ({"clip": {"second": {"pretrained": "openai"}}}, "ref"),
    ],
)
def test_a_second_scorer_that_could_not_be_used_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config.build(settings, where="test")


def test_a_second_scorer_can_be_set_on_the_command_line():
    built = config.with_overrides(
        config.RunConfig(), ["clip.second.ref=ViT-B-16-SigLIP2", "clip.second.pretrained=webli"]
    )
    assert built.clip.second == config.ClipModel(ref="ViT-B-16-SigLIP2", pretrained="webli")
    assert [scorer.label for scorer in built.clip.scorers] == ["miniworld:clip", "ViT-B-16-SigLIP2 (webli)"]

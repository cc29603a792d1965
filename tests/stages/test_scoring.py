"""Batched scores equal the reference, captions are scored per sentence, and bad rows become error rows."""

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jsfree.config import RunConfig
from jsfree.models.clip import load_clip
from jsfree.models.references import WEIGHTS
from jsfree.schemas import SCORED, SCORED_CAPTIONS
from jsfree.stages.scoring import ClipScorer
from tests.support import tiny_clips

CONTEXT = 24
LONG = "a dog, a cat and a very large brown horse, two men with hats; " * 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Uses one thread, because tiny tensors are slower with several on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_clips.write(tmp_path_factory.mktemp("clip") / "tiny", "laion")


@pytest.fixture(scope="module")
def scorer(tiny):
    return ClipScorer(config(tiny))


def config(clip):
    return RunConfig.model_validate({"clip": {"ref": str(clip)}})


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 52, 3), dtype=np.uint8))


def plain_scores(clip, images, captions):
    """Reference scores: one image and one sentence at a time, as in open_clip's example."""
    with torch.inference_mode():
        return [
            [
                float(
                    clip.model.encode_image(clip.transform(image)[None], normalize=True)
                    @ clip.model.encode_text(clip.tokenizer([sentence]), normalize=True).T
                )
                for sentence in caption
            ]
            for image, caption in zip(images, captions, strict=True)
        ]


def assert_equal_to_plain(scorer, clip):
    captions = [
        ["a cup", "There is a red ball at the left.", "a dog and a cat, on a table"],
        ["a cup"],
        [],
        ["a cup", "one two three four five six seven eight nine ten eleven " * 4, "été 一只猫 <end_of_text> x"],
    ]
    images = [picture(number) for number in range(4)]
    scores = scorer.sentence_scores(images, captions)
    expected = plain_scores(clip, images, captions)
    assert [len(caption) for caption in scores] == [3, 1, 0, 3]
    for own, plain in zip(scores, expected, strict=True):
        assert own == pytest.approx(plain, abs=1e-6)


def test_scores_equal_the_reference(scorer, tiny):
    assert_equal_to_plain(scorer, load_clip(str(tiny)))


def test_scores_equal_the_reference_over_several_batches(scorer, tiny):
    images = [picture(number) for number in range(70)]
    captions = [[f"{'so ' * (number % 9)}number {number} {word}" for word in "abcd"] for number in range(70)]
    scores = scorer.sentence_scores(images, captions)
    for number in (0, 33, 69):
        plain = plain_scores(load_clip(str(tiny)), images[number : number + 1], captions[number : number + 1])
        assert scores[number] == pytest.approx(plain[0], abs=1e-6)


def image_of(seed, image_id=None):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return {"id": image_id or f"image-{seed}", "uri": None, "bytes": buffer.getvalue(), "sha256": None}


def decoded(text, ratio=0.0):
    return {"ratio": ratio, "text": text, "token_ids": [1, 2], "finish": "stop"}


def pair(seed, low, high):
    image = image_of(seed)
    return {
        "sample_id": f"sample-{seed}",
        "image": image,
        "prompt": "Describe.",
        "low": decoded(low),
        "high": decoded(high, 0.5),
        "seed": 3,
    }


def row(seed, text, mode="greedy"):
    return {
        "sample_id": f"sample-{seed}",
        "image": image_of(seed),
        "prompt": "Describe.",
        "model": "m0",
        "mode": mode,
        "text": text,
        "token_ids": [1],
        "finish": "stop",
    }


def test_a_caption_gets_the_mean_score_of_its_sentences(scorer, tiny):
    output = scorer([pair(0, "A cup. A dog runs.", "A red ball."), pair(1, "A red ball.", "A cup. A dog runs.")])
    assert output.errors == []
    first, second = output.rows
    assert [sentence["text"] for sentence in first["low"]["sentences"]] == ["A cup.", "A dog runs."]
    plain = plain_scores(load_clip(str(tiny)), [picture(0)], [["A cup.", "A dog runs.", "A red ball."]])[0]
    assert first["low"]["score"] == pytest.approx((plain[0] + plain[1]) / 2, abs=1e-6)
    assert first["high"]["score"] == pytest.approx(plain[2], abs=1e-6)
    for scored in (first, second):
        assert scored["inverted"] == (scored["low"]["score"] < scored["high"]["score"])
        assert scored["gap"] == abs(scored["low"]["score"] - scored["high"]["score"])
    assert pa.Table.from_pylist(output.rows, SCORED).to_pylist() == output.rows
    # Three distinct sentences with 5, 6 and 6 tokens, including start and end tokens.
    assert output.tokens == 5 + 6 + 6


def test_the_order_of_sentences_does_not_change_the_score(scorer):
    tie = scorer([pair(0, "A cup. A dog runs. A hat.", "A hat. A cup. A dog runs.")]).rows[0]
    assert (tie["inverted"], tie["gap"]) == (False, 0)


def test_a_sentence_longer_than_the_context_is_split(scorer):
    scored = scorer([pair(0, f"A cup. {LONG}", "A cup.")]).rows[0]
    texts = [sentence["text"] for sentence in scored["low"]["sentences"]]
    assert len(texts) > 3
    assert " ".join(texts).split() == f"A cup. {LONG}".split()
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    assert all(len(tokenizer.encode(text)) + 2 <= CONTEXT for text in texts)
    scores = [sentence["score"] for sentence in scored["low"]["sentences"]]
    assert scored["low"]["score"] == pytest.approx(sum(scores) / len(scores))


def test_a_sentence_that_just_fits_is_not_split(scorer):
    for length in range(CONTEXT - 5, CONTEXT + 3):
        text = " ".join(["cup"] * length)
        pieces = scorer([pair(0, text, "A cup.")]).rows[0]["low"]["sentences"]
        assert (len(pieces) == 1) == (length + 2 <= CONTEXT)


def test_rows_that_cannot_be_scored_become_error_rows(scorer):
    broken = pair(1, "A cup.", "A dog.")
    broken["image"] = {"id": "broken.png", "uri": None, "bytes": b"no image", "sha256": None}
    output = scorer([pair(0, "A cup.", "A dog."), broken, pair(2, " ", "A dog."), pair(3, "A dog.", "...")])
    assert [scored["sample_id"] for scored in output.rows] == ["sample-0"]
    assert [(error["sample_id"], error["stage"], error["kind"]) for error in output.errors] == [
        ("sample-1", "scored", "undecodable"),
        ("sample-2", "scored", "no_sentence"),
        ("sample-3", "scored", "no_sentence"),
    ]
    assert "broken.png" in output.errors[0]["message"]
    assert "'low'" in output.errors[1]["message"]
    assert "'high'" in output.errors[2]["message"]


def test_a_batch_of_only_bad_rows_does_not_fail(scorer):
    output = scorer([pair(0, "", "")])
    assert (output.rows, len(output.errors), output.tokens) == ([], 1, 0)
    assert scorer([]).rows == []


def test_evaluation_captions_are_scored_in_order(scorer, tiny):
    rows = [row(0, "A cup. A dog."), row(1, "A hat."), row(0, "A hat.", "sampled"), row(1, "", "sampled")]
    output = scorer.score_rows(rows)
    assert [(scored["sample_id"], scored["mode"]) for scored in output.rows] == [
        (scored["sample_id"], scored["mode"]) for scored in rows
    ]
    clip = load_clip(str(tiny))
    cup, dog, hat = plain_scores(clip, [picture(0)], [["A cup.", "A dog.", "A hat."]])[0]
    other = plain_scores(clip, [picture(1)], [["A hat."]])[0][0]
    assert [scored["score"] for scored in output.rows[:3]] == pytest.approx([(cup + dog) / 2, other, hat], abs=1e-6)
    assert output.rows[3]["sentences"] == []
    assert math.isnan(output.rows[3]["score"])
    assert pa.Table.from_pylist(output.rows, SCORED_CAPTIONS).num_rows == 4


def test_a_missing_evaluation_image_makes_each_of_its_captions_an_error_row(scorer):
    rows = [row(0, "A cup."), row(1, "A cup."), row(0, "A dog.", "sampled")]
    for gone in (rows[0], rows[2]):
        gone["image"] = {"id": "gone", "uri": "memory://nowhere/gone.png", "bytes": None, "sha256": None}
    output = scorer.score_rows(rows)
    assert [scored["sample_id"] for scored in output.rows] == ["sample-1"]
    assert [(error["kind"], error["stage"]) for error in output.errors] == [("missing", "captions")] * 2


@pytest.mark.skipif(not (WEIGHTS / "clip").is_dir(), reason="MiniWorld's CLIP is not there yet")
def test_miniworld_clip_prefers_true_captions():
    from jsfree.miniworld import world

    scorer = ClipScorer(RunConfig())
    assert_equal_to_plain(scorer, load_clip("miniworld:clip"))
    scenes = [world.scene("development", index) for index in range(60)]
    other = [*scenes[1:], scenes[0]]
    scores = scorer.sentence_scores(
        [world.draw(scene) for scene in scenes],
        [[world.true_caption(scene), world.true_caption(wrong)] for scene, wrong in zip(scenes, other, strict=True)],
    )
    assert sum(true > false for true, false in scores) > 45

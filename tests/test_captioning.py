"""The stage classes that caption images: rows in order, bad images as error rows, baselines in the same engine."""

import pytest

from jsfree import config
from jsfree.captioning import CaptionWriter, PairGenerator
from jsfree.config import RunConfig
from jsfree.decoding import algorithm1
from jsfree.decoding.mixing import contrast_of
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.errors import ConfigError
from jsfree.miniworld import world

SMALL = {"generate": {"decoding": {"max_new_tokens": 12}, "slots": 6}}


def sample(index: int, content: bytes | None = None) -> dict:
    """A row of ``samples``: a development scene, or other content."""
    scene = world.scene("development", index)
    image = {"id": str(index), "uri": None, "bytes": content or world.png_bytes(scene), "sha256": None}
    return {"sample_id": f"{index:03d}", "image": image, "prompt": world.PROMPT}


def test_what_cannot_be_read_is_an_error_row_and_its_neighbours_keep_their_captions():
    generator = PairGenerator(RunConfig.model_validate(SMALL), "miniworld:captioner", 1)
    samples = [sample(index) for index in range(90)]  # more than are read ahead
    samples[3], samples[80] = sample(3, b"no image"), sample(80, world.png_bytes(world.scene("development", 1))[:99])
    output = generator(samples)
    whole = generator([each for index, each in enumerate(samples) if index not in (3, 80)])
    assert [error["sample_id"] for error in output.errors] == ["003", "080"]
    assert {error["kind"] for error in output.errors} <= {"unsupported_format", "undecodable"}
    assert [row["sample_id"] for row in output.rows] == [f"{i:03d}" for i in range(90) if i not in (3, 80)]
    assert output.rows == whole.rows
    assert all(len(row["image"]["sha256"]) == 64 for row in output.rows)


@pytest.mark.parametrize("kind", ["vcd", "m3id"])
def test_a_baseline_of_the_literature_captions_for_evaluation(captioner, kind):
    settings = config.load(
        None, [f"evaluate.modes.{kind}.contrast.kind={kind}", f"evaluate.modes.{kind}.max_new_tokens=16"]
    )
    rows = CaptionWriter(settings, "miniworld:captioner", "m0", kind)([sample(index) for index in range(3)]).rows
    mode = settings.evaluate.modes[kind]
    for index, row in enumerate(rows):
        pixels = captioner.pixels(world.draw(world.scene("development", index)))
        key = noise_key(settings.seed, 0, row["sample_id"], kind)
        request = Request("x", pixels, world.PROMPT, 1.0, key, mode)
        expected = algorithm1.decode(captioner, request, contrast_of(mode.contrast))
        assert tuple(row["token_ids"]) == expected.token_ids
        assert row["mode"] == kind


def test_pairs_are_generated_without_contrast():
    with pytest.raises(ConfigError, match=r"unknown key 'generate\.decoding\.contrast'"):
        config.load(None, ["generate.decoding.contrast.kind=vcd"])

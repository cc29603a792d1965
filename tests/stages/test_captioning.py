"""The captioning stages keep the order of rows, turn bad images into error rows, and run the baselines."""

from dataclasses import replace

import pytest
from PIL import Image

from jsfree import config
from jsfree.config import RunConfig
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.mixing import add_diffusion_noise, contrastive_mixing
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.errors import ConfigError
from jsfree.images.decoding import load_image
from jsfree.miniworld import world
from jsfree.stages.captioning import CaptionWriter, PairGenerator
from tests.support.images import spoiled

SMALL = {"generate": {"decoding": {"max_new_tokens": 12}, "slots": 6}}


def sample(index: int, content: bytes | None = None) -> dict:
    """A row of ``samples`` with a development scene or with other content."""
    scene = world.scene("development", index)
    image = {"id": str(index), "uri": None, "bytes": content or world.png_bytes(scene), "sha256": None}
    return {"sample_id": f"{index:03d}", "image": image, "prompt": world.PROMPT}


def test_unreadable_images_become_error_rows_without_changing_other_captions():
    generator = PairGenerator(RunConfig.model_validate(SMALL), "miniworld:captioner", 1)
    samples = [sample(index) for index in range(90)]  # more than the stage prefetches
    samples[3], samples[80] = sample(3, b"no image"), sample(80, world.png_bytes(world.scene("development", 1))[:99])
    output = generator(samples)
    whole = generator([each for index, each in enumerate(samples) if index not in (3, 80)])
    assert [error["sample_id"] for error in output.errors] == ["003", "080"]
    assert {error["kind"] for error in output.errors} <= {"unsupported_format", "undecodable"}
    assert [row["sample_id"] for row in output.rows] == [f"{i:03d}" for i in range(90) if i not in (3, 80)]
    assert output.rows == whole.rows
    assert all(len(row["image"]["sha256"]) == 64 for row in output.rows)


def test_every_kind_of_bad_row_is_reported_without_affecting_other_rows(tmp_path):
    """Each row becomes a pair or an error, and the valid rows get the same pairs as on their own."""
    picture = world.draw(world.scene("development", 0)).resize((96, 96))
    for name, mode in {"cmyk.jpg": "CMYK", "grey.png": "L"}.items():
        picture.convert(mode).save(tmp_path / name)
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    picture.save(tmp_path / "really-a-png.jpg", format="PNG")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("1", (10_001, 10_001)).save(tmp_path / "huge.png")  # 100 megapixels in 12 kB
    whole = (tmp_path / "cmyk.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("404 Not Found")
    (tmp_path / "empty.png").touch()
    names = [*sorted(each.name for each in tmp_path.iterdir()), "gone.png"]
    samples = [
        {
            "sample_id": name,
            "image": {"id": name, "uri": str(tmp_path / name), "bytes": None, "sha256": None},
            "prompt": world.PROMPT,
        }
        for name in names
    ]
    samples += [dict(samples[names.index("grey.png")]), {**samples[names.index("grey.png")], "sample_id": "silent"}]
    samples[-1]["prompt"] = " "
    generator = PairGenerator(RunConfig.model_validate(SMALL), "miniworld:captioner", 1)
    output = generator(samples)
    assert {error["sample_id"]: error["kind"] for error in output.errors} == {
        "cut.jpg": "undecodable",
        "dot.png": "too_small",
        "empty.png": "undecodable",
        "gone.png": "missing",
        "grey.png": "duplicate_id",
        "huge.png": "too_many_pixels",
        "silent": "empty_prompt",
        "text.png": "undecodable",
    }
    assert [row["sample_id"] for row in output.rows] == ["cmyk.jpg", "grey.png", "moving.gif", "really-a-png.jpg"]
    assert len(output.rows) + len(output.errors) == len(samples)
    for row in output.rows:
        assert generator([samples[names.index(row["sample_id"])]]).rows == [row]


def test_a_caption_without_an_end_token_is_truncated_and_marked(monkeypatch):
    """The caption is kept: ``select.keep_truncated`` decides whether it is used for training."""
    generator = PairGenerator(RunConfig.model_validate(SMALL), "miniworld:captioner", 1)
    monkeypatch.setattr(type(generator.captioner), "eos_ids", frozenset())
    (row,) = generator([sample(0)]).rows
    longest = generator.config.generate.decoding.max_new_tokens
    assert {(row[role]["finish"], len(row[role]["token_ids"])) for role in ("low", "high")} == {("length", longest)}


def test_an_image_without_a_valid_token_is_one_error_row(monkeypatch):
    generator = PairGenerator(RunConfig.model_validate(SMALL), "miniworld:captioner", 1)
    writer = CaptionWriter(RunConfig.model_validate(SMALL), "miniworld:captioner", "m0", "greedy")
    samples = [sample(index) for index in range(3)]
    spoilt = {noise_key(0, 1, samples[1]["sample_id"], "high"), noise_key(0, 0, samples[1]["sample_id"], "greedy")}
    submit = DualPathEngine.submit

    def submit_spoilt(engine, request):
        spoils = request.noise_key in spoilt
        submit(engine, replace(request, image=spoiled(request.image)) if spoils else request)

    monkeypatch.setattr(DualPathEngine, "submit", submit_spoilt)
    for stage in (generator, writer):
        output = stage(samples)
        assert [row["sample_id"] for row in output.rows] == [samples[0]["sample_id"], samples[2]["sample_id"]]
        assert [(row["sample_id"], row["kind"]) for row in output.errors] == [(samples[1]["sample_id"], "no_token")]


@pytest.mark.parametrize("kind", ["vcd", "m3id"])
def test_published_baselines_match_the_reference_decoder(captioner, kind):
    settings = config.load(
        None, [f"evaluate.modes.{kind}.contrast.kind={kind}", f"evaluate.modes.{kind}.max_new_tokens=16"]
    )
    rows = CaptionWriter(settings, "miniworld:captioner", "m0", kind)([sample(index) for index in range(3)]).rows
    mode = settings.evaluate.modes[kind]
    for index, row in enumerate(rows):
        pixels = captioner.inputs(world.draw(world.scene("development", index)))
        key = noise_key(settings.seed, 0, row["sample_id"], kind)
        request = Request("x", pixels, world.PROMPT, 1.0, key, mode)
        expected = algorithm1.decode(captioner, request, contrastive_mixing(mode.contrast))
        assert tuple(row["token_ids"]) == expected.token_ids
        assert row["mode"] == kind


def test_views_are_passed_on_to_pairs_and_evaluation_captions(captioner):
    views, length = "views.count=3", "max_new_tokens=12"
    keys = ("generate.decoding", "evaluate.modes.greedy")
    settings = config.load(None, [f"{key}.{each}" for key in keys for each in (views, length)])
    (pair,) = PairGenerator(settings, "miniworld:captioner", 1)([sample(0)]).rows
    (row,) = CaptionWriter(settings, "miniworld:captioner", "m0", "greedy")([sample(0)]).rows
    pixels = captioner.inputs(world.draw(world.scene("development", 0)))
    generated, mode = settings.generate.decoding, settings.evaluate.modes["greedy"]
    for written, ratio, key, decoding in (
        (pair["low"], pair["low"]["ratio"], (1, "low"), generated),
        (pair["high"], pair["high"]["ratio"], (1, "high"), generated),
        (row, 0.0, (0, "greedy"), mode),
    ):
        noise = noise_key(settings.seed, key[0], "000", key[1])
        expected = algorithm1.decode(captioner, Request("x", pixels, world.PROMPT, ratio, noise, decoding))
        assert tuple(written["token_ids"]) == expected.token_ids


LOSERS = {
    "noised_image": {"loser": "noised_image", "noise_step": 700},
    "bad_prompt": {"loser": "bad_prompt", "bad_prompt": "What color is the cup?"},
    "continuation": {"loser": "continuation"},
    "continuation with samples": {"loser": "continuation", "samples": 2},
}


def literal_loser(captioner, settings, row, image):
    """The loser of a row by Algorithm 1."""
    generate = settings.generate
    noised = captioner.map_pixels(image, lambda canvas: add_diffusion_noise(canvas, 700))
    shown = noised if generate.loser == "noised_image" else image
    prompt = "What color is the cup?" if generate.loser == "bad_prompt" else row["prompt"]
    low = row["low"]["token_ids"]
    is_continued = generate.loser == "continuation"
    request = Request(
        "x",
        shown,
        prompt,
        ratio=1.0 if is_continued else 0.0,
        noise_key=noise_key(settings.seed, 1, row["sample_id"], "high"),
        decoding=generate.decoding,
        with_logps=True,
        prefix=tuple(low[: len(low) // 2]) if is_continued else (),
    )
    return request, algorithm1.decode(captioner, request)


@pytest.mark.parametrize("name", LOSERS)
def test_losers_of_published_baselines_match_the_reference_decoder(captioner, name):
    settings = RunConfig.model_validate({"generate": {**SMALL["generate"], **LOSERS[name]}})
    ordinary = RunConfig.model_validate(SMALL)
    samples = [sample(index) for index in range(5)]
    rows = PairGenerator(settings, "miniworld:captioner", 1)(samples).rows
    for row, plain in zip(rows, PairGenerator(ordinary, "miniworld:captioner", 1)(samples).rows, strict=True):
        assert row["low"] == plain["low"]
        assert row["prompt"] == plain["prompt"]
        image = captioner.inputs(load_image(row["image"], settings.source).image)
        request, expected = literal_loser(captioner, settings, row, image)
        assert (row["high"]["ratio"], tuple(row["high"]["token_ids"])) == (request.ratio, expected.token_ids)
        if "samples" in name:
            assert [each["role"] for each in row["candidates"]] == ["low", "high", "sample-1", "sample-2"]
            assert row["candidates"][1]["logps"] == pytest.approx(expected.logps, abs=1e-4)
    assert any(row["high"]["text"] != row["low"]["text"] for row in rows)
    assert PairGenerator(settings, "miniworld:captioner", 1)(samples[3:1:-1]).rows == [rows[3], rows[2]]


def test_a_loser_that_cannot_follow_its_winner_is_one_error_row(monkeypatch):
    settings = RunConfig.model_validate({"generate": {**SMALL["generate"], "loser": "continuation"}})
    generator = PairGenerator(settings, "miniworld:captioner", 1)
    samples = [sample(index) for index in range(3)]
    spoilt = noise_key(0, 1, samples[1]["sample_id"], "low")
    submit = DualPathEngine.submit

    def submit_spoilt(engine, request):
        spoils = request.noise_key == spoilt
        submit(engine, replace(request, image=spoiled(request.image)) if spoils else request)

    monkeypatch.setattr(DualPathEngine, "submit", submit_spoilt)
    output = generator(samples)
    assert [row["sample_id"] for row in output.rows] == [samples[0]["sample_id"], samples[2]["sample_id"]]
    assert [(row["sample_id"], row["kind"]) for row in output.errors] == [(samples[1]["sample_id"], "no_token")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["generate.loser=noised_image", "generate.samples=2"], r"'samples' \(2\) cannot be used with 'loser: noised"),
        (["generate.loser=bad_prompt", "generate.samples=1"], r"log-probabilities would not be those of the image"),
        (["generate.loser=continuation", "generate.ratios.winner=drawn"], r"requires 'ratios\.winner: zero'"),
        (["generate.loser=bad_prompt", "generate.bad_prompt= "], r"'bad_prompt' must not be empty"),
    ],
)
def test_contradictory_settings_of_losers_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(None, override)


def test_generating_pairs_does_not_accept_contrastive_decoding():
    with pytest.raises(ConfigError, match=r"unknown key 'generate\.decoding\.contrast'"):
        config.load(None, ["generate.decoding.contrast.kind=vcd"])

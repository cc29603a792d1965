"""Images of every source are listed, each of them is used once, and a bad image is one error row."""

import hashlib
import io
import json
import random
import uuid
import zlib

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError, SourceError
from jsfree.images.decoding import load_image
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.schemas import SAMPLES, sample_id

LIMITS = Source(min_side=4, max_pixels=10_000, max_bytes=100_000)


def encoded(kind="PNG", mode="RGB", size=(16, 12), colour=None, **options):
    buffer = io.BytesIO()
    colour = colour if colour is not None else {"RGB": (200, 30, 40), "L": 90}.get(mode, 0)
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def by_bytes(content):
    return {"id": "some image", "uri": None, "bytes": content, "sha256": None}


def by_uri(uri):
    return {"id": "some image", "uri": str(uri), "bytes": None, "sha256": None}


def kind_of_failure(image, limits=LIMITS):
    with pytest.raises(RowError, match="some image") as caught:
        load_image(image, limits)
    assert "\n" not in str(caught.value)
    return caught.value.kind


# --- one image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_supported_format_loads_from_a_file_and_from_bytes(kind, tmp_path):
    content = encoded(kind)
    (tmp_path / "a b#1").write_bytes(content)
    from_file, digest = load_image(by_uri(tmp_path / "a b#1"), LIMITS)
    from_bytes, same = load_image(by_bytes(content), LIMITS)
    assert from_file.mode == "RGB"
    assert from_file.size == (16, 12)
    assert digest == same == hashlib.sha256(content).hexdigest()
    assert np.array_equal(from_file, from_bytes)
    assert np.abs(np.asarray(from_file).astype(int) - (200, 30, 40)).max() < 12


def test_an_image_loads_from_a_uri():
    uri = f"memory://{uuid.uuid4().hex}/x.png"
    with fsspec.open(uri, "wb") as file:
        file.write(encoded())
    assert load_image(by_uri(uri), LIMITS)[0].size == (16, 12)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(by_bytes(encoded("JPEG", exif=exif.tobytes())), LIMITS)[0].size == (12, 16)


def test_an_image_with_damaged_exif_loads():
    content = encoded("JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert load_image(by_bytes(content), LIMITS)[0].size == (16, 12)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
        assert load_image(by_bytes(buffer.getvalue()), LIMITS)[0].getpixel((3, 3)) == (255, 0, 0)


def test_transparent_pixels_become_white():
    palette = Image.new("P", (16, 12), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    images = [
        buffer.getvalue(),
        encoded(mode="RGBA", colour=(0, 0, 0, 0)),
        encoded(mode="LA", colour=(0, 0)),
        encoded(mode="RGB", colour=(1, 2, 3), transparency=(1, 2, 3)),
        encoded("WEBP", mode="RGBA", colour=(0, 0, 0, 0), lossless=True),
    ]
    for content in images:
        assert load_image(by_bytes(content), LIMITS)[0].getpixel((5, 5)) == (255, 255, 255)
    half = load_image(by_bytes(encoded(mode="RGBA", colour=(0, 0, 0, 128))), LIMITS)[0]
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_16_bit_float_cmyk_and_bilevel_images_become_rgb():
    grey = np.full((12, 16), 32768, dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    assert load_image(by_bytes(buffer.getvalue()), LIMITS)[0].getpixel((0, 0)) == (128, 128, 128)
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 192, dtype=np.float32).reshape(12, 16)).save(buffer, "TIFF")
    floats = load_image(by_bytes(buffer.getvalue()), LIMITS)[0]
    assert (floats.getpixel((0, 0)), floats.getpixel((15, 11))) == ((0, 0, 0), (255, 255, 255))
    cmyk = load_image(by_bytes(encoded("JPEG", mode="CMYK", colour=(0, 255, 255, 0))), LIMITS)[0]
    red, green, blue = cmyk.getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 60
    assert load_image(by_bytes(encoded(mode="1", colour=1)), LIMITS)[0].getpixel((0, 0)) == (255, 255, 255)


def test_an_absent_image_is_missing(tmp_path):
    assert kind_of_failure(by_uri(tmp_path / "no.png")) == "missing"
    assert kind_of_failure(by_uri("memory://nowhere/no.png")) == "missing"
    assert kind_of_failure({"id": "some image", "uri": None, "bytes": None, "sha256": None}) == "missing"


def test_a_folder_and_an_invalid_uri_are_unreadable(tmp_path):
    assert kind_of_failure(by_uri(tmp_path)) == "unreadable"
    assert kind_of_failure(by_uri("nosuchscheme://a/b.png")) == "unreadable"
    assert kind_of_failure(by_uri("/a\0b.png")) == "unreadable"


def test_a_file_replaced_since_it_was_hashed_is_refused_as_changed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(colour="red"))
    image = by_uri(tmp_path / "a.png")
    known = {**image, "sha256": load_image(image, LIMITS)[1]}
    assert load_image(known, LIMITS)[1] == known["sha256"]
    (tmp_path / "a.png").write_bytes(encoded(colour="blue"))
    assert kind_of_failure(known) == "changed"


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(50 * 2**30)  # sparse: reading the whole file would exhaust the memory
    assert kind_of_failure(by_uri(large)) == "too_many_bytes"
    assert kind_of_failure(by_bytes(b"x" * 100_001)) == "too_many_bytes"


def test_too_many_pixels_are_refused_before_they_are_decoded():
    assert kind_of_failure(by_bytes(encoded(size=(101, 100)))) == "too_many_pixels"
    bomb = bytearray(encoded())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # IHDR claims 3.6 gigapixels
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    assert kind_of_failure(by_bytes(bytes(bomb)), Source()) == "too_many_pixels"
    bomb[16:24] = (10_000).to_bytes(4, "big") * 2  # Pillow would only warn
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    assert kind_of_failure(by_bytes(bytes(bomb)), Source()) == "too_many_pixels"


def test_tiny_images_and_thin_strips_are_too_small():
    assert kind_of_failure(by_bytes(encoded(size=(3, 40)))) == "too_small"
    assert kind_of_failure(by_bytes(encoded(size=(2000, 5)))) == "too_small"


def test_unsupported_formats_are_named_in_the_error():
    assert kind_of_failure(by_bytes(encoded("PPM"))) == "unsupported_format"
    with pytest.raises(RowError, match="ICO"):
        load_image(by_bytes(encoded("ICO", size=(16, 16))), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_undecodable(kind):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    content = buffer.getvalue()
    assert kind_of_failure(by_bytes(content[: len(content) // 2])) == "undecodable"


def test_bytes_that_are_not_an_image_are_undecodable():
    for content in (b"", b"\0" * 100, b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        assert kind_of_failure(by_bytes(content)) == "undecodable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_random_damage_raises_only_row_errors(kind):
    rng = random.Random(kind)
    content = encoded(kind, exif=Image.Exif().tobytes()) if kind in ("JPEG", "PNG", "WEBP") else encoded(kind)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            image, _ = load_image(by_bytes(bytes(damaged)), LIMITS)
        except RowError as error:
            assert error.kind in ("undecodable", "unsupported_format", "too_many_pixels", "too_small")  # noqa: PT017
        else:
            assert image.mode == "RGB"


# --- sources of images


def config(source, *, evaluate=None, **settings):
    evaluate = evaluate or {"kind": "miniworld", "split": "test", "count": 2}
    return RunConfig.model_validate({"source": source, "evaluate": {"source": evaluate}, **settings})


def ids(samples):
    return [sample["image"]["id"] for sample in samples]


@pytest.fixture
def folder(tmp_path):
    """Twelve images in two folders, and two files that are not images."""
    root = tmp_path / "pictures"
    for number in range(12):
        path = root / ("a" if number % 2 else "b/deep") / f"{number}.{'JPG' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("JPEG" if number % 3 else "PNG", colour=(number, 0, 0)))
    (root / "notes.txt").write_text("no image")
    (root / "a" / "._0.png").write_bytes(b"what macOS leaves behind")
    return root


def test_a_folder_is_searched_recursively(folder):
    samples = training_samples(config({"kind": "folder", "path": str(folder), "count": None}), 1)
    assert len(samples) == 12
    assert {"a/1.JPG", "b/deep/0.png"} <= set(ids(samples))
    for sample in samples:
        assert sample["sample_id"] == sample_id(sample["image"]["id"], "Describe image in detail.")
        assert load_image(sample["image"], LIMITS)[0].size == (16, 12)
    assert pa.Table.from_pylist(samples, SAMPLES).num_rows == 12


def test_rounds_and_evaluation_never_share_an_image(folder):
    source = {"kind": "folder", "path": str(folder), "count": 3}
    held_out = {**source, "path": f"{folder}/", "count": 2}
    settings = config(source, evaluate=held_out, rounds=3, seed=5)
    parts = [ids(training_samples(settings, number)) for number in (1, 2, 3)] + [ids(evaluation_samples(settings))]
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert len({image for part in parts for image in part}) == 11
    assert ids(training_samples(settings, 2)) == parts[1]
    assert ids(training_samples(config(source, rounds=3, seed=6), 1)) != parts[0]
    rest = config({**source, "count": None}, evaluate=held_out, seed=5)
    assert set(ids(training_samples(rest, 1))) | set(ids(evaluation_samples(rest))) == set(
        ids(training_samples(config({**source, "count": None}), 1))
    )


def test_removing_a_file_keeps_the_order_of_the_others(folder):
    whole = config({"kind": "folder", "path": str(folder), "count": None})
    before = ids(training_samples(whole, 1))
    (folder / before[4]).unlink()
    assert ids(training_samples(whole, 1)) == before[:4] + before[5:]


def test_the_error_for_too_few_images_states_how_many_are_needed(folder):
    source = {"kind": "folder", "path": str(folder), "count": 5}
    settings = config(source, evaluate=source, rounds=2)
    for listed in (lambda: training_samples(settings, 1), lambda: evaluation_samples(settings)):
        with pytest.raises(SourceError, match=r"12 images, but 15 .*2 x 5 for training and 5.*source.count"):
            listed()
    with pytest.raises(SourceError, match=r"12 images, but 'evaluate\.source\.count' is 13"):
        evaluation_samples(config({"count": 4}, evaluate={**source, "count": 13}))
    everything = {**source, "count": None}
    with pytest.raises(SourceError, match=r"evaluate\.source\.count"):
        training_samples(config(everything, evaluate=everything), 1)


def test_evaluation_on_another_folder_may_use_every_image(folder):
    settings = config({"count": 4}, evaluate={"kind": "folder", "path": str(folder), "count": None})
    assert len(evaluation_samples(settings)) == 12


def test_a_remote_folder_gives_the_same_samples_as_a_local_one(folder):
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(folder), root, recursive=True)
    local = training_samples(config({"kind": "folder", "path": str(folder), "count": None}), 1)
    remote = training_samples(config({"kind": "folder", "path": root, "count": None}), 1)
    assert ids(remote) == ids(local)
    assert remote[0]["image"]["uri"].startswith("memory://")
    assert load_image(remote[0]["image"], LIMITS)[1] == load_image(local[0]["image"], LIMITS)[1]


@pytest.mark.parametrize("kind", ["folder", "llava_json", "parquet"])
def test_a_missing_path_is_named_in_the_error(kind, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere does not exist.*source\.path"):
        training_samples(config({"kind": kind, "path": str(tmp_path / "nowhere")}), 1)


def test_a_path_with_an_unknown_scheme_is_named_in_the_error():
    with pytest.raises(SourceError, match="nosuchscheme://a cannot be read"):
        training_samples(config({"kind": "folder", "path": "nosuchscheme://a"}), 1)


def test_an_empty_folder_and_a_file_are_refused_as_folder_sources(tmp_path):
    with pytest.raises(SourceError, match="has no images"):
        training_samples(config({"kind": "folder", "path": str(tmp_path)}), 1)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SourceError, match="is a file, not a folder"):
        training_samples(config({"kind": "folder", "path": str(tmp_path / "x.json")}), 1)


def llava(tmp_path, rows, **source):
    path = tmp_path / "mix.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return training_samples(config({"kind": "llava_json", "path": str(path), "count": None, **source}), 1)


def test_llava_json_lists_each_image_once(folder, tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]
    rows = [
        {"id": "1", "image": "a/1.JPG", "conversations": talk},
        {"id": "2", "conversations": talk},
        {"id": "3", "image": "./a/1.JPG", "conversations": talk},
        {"id": 4, "image": "b/deep/0.png"},
        {"id": "5", "image": None, "conversations": talk},
    ]
    samples = llava(tmp_path, rows, images=str(folder))
    assert sorted(ids(samples)) == ["a/1.JPG", "b/deep/0.png"]
    assert all(load_image(sample["image"], LIMITS) for sample in samples)
    beside = llava(folder, rows)
    assert [sample["image"]["uri"] for sample in beside] == [sample["image"]["uri"] for sample in samples]


def test_relative_paths_do_not_depend_on_the_working_directory_of_a_worker(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(llava(tmp_path, [{"image": "a/1.JPG"}], images="pictures"))
    found += training_samples(config({"kind": "folder", "path": "pictures", "count": 1}), 1)
    monkeypatch.chdir("/")
    assert all(load_image(sample["image"], LIMITS) for sample in found)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "has one row, of type dict, without the key"),
        ("[{", "not valid JSON"),
        (["text"], "row 0: is str"),
        ('"text"', "row 0: is str"),
        ([{"image": "a\0.png"}], "row 0: the image's path contains a null character at 1"),
        ([{"id": 1}, {"image": ["b.png"]}], "row 1: key 'image' is list"),
        ([{"id": 1}, {"id": 2}], "none of its 2 rows has the key 'image'"),
    ],
)
def test_json_of_another_layout_is_refused_with_row_and_key(rows, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        llava(tmp_path, rows)


def parquet(path, columns, **source):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return config({"kind": "parquet", "path": str(path), "count": None, **source})


def test_parquet_bytes_are_stored_as_addresses_and_load(tmp_path):
    contents = [encoded(colour=(number, 0, 0)) for number in range(5)]
    samples = training_samples(parquet(tmp_path / "x.parquet", {"image": contents}), 1)
    assert sorted(ids(samples)) == [f"x.parquet:{row}" for row in range(5)]
    for sample in samples:
        row = int(sample["image"]["id"].split(":")[1])
        assert sample["image"]["bytes"] is None  # samples store addresses instead of image bytes
        image, digest = load_image(sample["image"], LIMITS)
        assert digest == hashlib.sha256(contents[row]).hexdigest()
        assert image.getpixel((0, 0)) == (row, 0, 0)


def test_parquet_structs_use_the_id_column_and_bytes_or_paths(folder, tmp_path):
    images = [{"bytes": encoded(), "path": None}, {"bytes": None, "path": "a/1.JPG"}, {"bytes": encoded(), "path": "x"}]
    settings = parquet(
        tmp_path / "x.parquet", {"image_id": [7, 8, 7], "photo": images}, column="photo", images=str(folder)
    )
    samples = {sample["image"]["id"]: sample["image"] for sample in training_samples(settings, 1)}
    assert set(samples) == {"7", "8"}
    assert load_image(samples["7"], LIMITS)[1] == hashlib.sha256(encoded()).hexdigest()
    assert samples["8"]["uri"] == f"{folder}/a/1.JPG"
    assert load_image(samples["8"], LIMITS)[0].size == (16, 12)


def test_parquet_paths_are_read_from_a_folder_of_tables(folder, tmp_path):
    parquet(folder / "tables" / "one.parquet", {"image": ["a/1.JPG", "a/1.JPG", "memory://x/y.png"]})
    parquet(folder / "tables" / "two.parquet", {"image": ["a/3.JPG"]})
    source = {"kind": "parquet", "path": str(folder / "tables"), "images": str(folder), "count": None}
    assert sorted(ids(training_samples(config(source), 1))) == ["a/1.JPG", "a/3.JPG"]
    samples = training_samples(config({**source, "allow_outside": True}), 1)
    assert sorted(ids(samples)) == ["a/1.JPG", "a/3.JPG", "memory://x/y.png"]
    uris = {sample["image"]["uri"] for sample in samples}
    assert uris == {f"{folder}/a/1.JPG", f"{folder}/a/3.JPG", "memory://x/y.png"}


def test_an_empty_cell_is_a_missing_image(tmp_path):
    settings = parquet(tmp_path / "x.parquet", {"image": [encoded(), None]})
    kinds = {}
    for sample in training_samples(settings, 1):
        try:
            load_image(sample["image"], LIMITS)
        except RowError as error:
            kinds[sample["image"]["id"]] = error.kind
    assert kinds == {"x.parquet:1": "missing"}


def test_tables_without_a_usable_image_column_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"no column 'image'.*one of picture, text"):
        training_samples(parquet(tmp_path / "x.parquet", {"picture": [b"x"], "text": ["y"]}), 1)
    with pytest.raises(SourceError, match="column 'text' is int64"):
        training_samples(parquet(tmp_path / "x.parquet", {"text": [1]}, column="text"), 1)
    (tmp_path / "y.parquet").write_text("no table")
    with pytest.raises(SourceError, match=r"y\.parquet is not a Parquet file"):
        training_samples(config({"kind": "parquet", "path": str(tmp_path / "y.parquet")}), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no Parquet rows"):
        training_samples(config({"kind": "parquet", "path": str(tmp_path / "empty")}), 1)


def test_miniworld_rounds_and_evaluation_use_distinct_scenes():
    settings = config({"kind": "miniworld", "count": 3}, rounds=2, seed=1)
    first, second = (training_samples(settings, number) for number in (1, 2))
    assert ids(first) == [f"miniworld-unlabelled-{1_000_000 + n}" for n in range(3)]
    assert ids(second) == [f"miniworld-unlabelled-{1_000_003 + n}" for n in range(3)]
    assert ids(evaluation_samples(settings)) == ["miniworld-test-000000", "miniworld-test-000001"]
    image = first[0]["image"]
    assert load_image(image, Source())[1] == image["sha256"]
    later = config({"kind": "miniworld"}, evaluate={"kind": "miniworld", "count": 2, "first": 1000})
    assert ids(evaluation_samples(later)) == ["miniworld-test-001000", "miniworld-test-001001"]


def test_miniworld_requires_a_count_and_separate_evaluation_scenes():
    with pytest.raises(SourceError, match=r"source\.count"):
        training_samples(config({"kind": "miniworld", "count": None}), 1)
    with pytest.raises(SourceError, match=r"evaluate\.source\.split"):
        evaluation_samples(config({"kind": "miniworld", "split": "test", "count": 3}))
    second_round = config(
        {"kind": "miniworld", "split": "test", "count": 2},
        rounds=2,
        evaluate={"kind": "miniworld", "split": "test", "count": 1, "first": 3},
    )
    with pytest.raises(SourceError, match="scenes from 3 on"):
        evaluation_samples(second_round)

"""A data file may only refer to images in its own folder unless ``source.allow_outside`` is set."""

import json
import os
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.config import RunConfig
from jsfree.errors import RowError, SourceError
from jsfree.images.confinement import is_inside
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples
from tests.support.example_tars import ids, picture


@pytest.fixture
def root(tmp_path):
    """A folder of images, next to an image that must not be read."""
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(picture(1))
    (folder / "2.png").write_bytes(picture(2))
    (tmp_path / "secret.png").write_bytes(picture(3))
    return folder


def drawn(path, names, kind, whole=None, **source):
    if kind == "llava_json":
        path.write_text(json.dumps([{"image": name} for name in names]))
    elif kind == "structs":
        pq.write_table(pa.table({"image": [{"bytes": None, "path": name} for name in names]}), path)
    else:
        pq.write_table(pa.table({"image": names}), path)
    settings = {"kind": "llava_json" if kind == "llava_json" else "parquet", "path": str(whole or path), "count": None}
    config = RunConfig.model_validate(
        {
            "source": {**settings, **source, "min_side": 4},
            "evaluate": {"source": {"kind": "miniworld", "split": "test", "count": 2}},
        }
    )
    return config.source, training_samples(config, 1)


def failed(samples):
    return [row for table in samples.unusable.tables("samples") for row in table.to_pylist()]


@pytest.mark.parametrize("kind", ["llava_json", "paths", "structs"])
def test_paths_outside_the_folder_become_error_rows(kind, root, tmp_path):
    inside = ["a/1.png", f"{root}/2.png", f"file://{root}/a/1.png", "a/../2.png", f"{root}/a/../a/1.png"]
    outside = [
        "../secret.png",
        "a/../../secret.png",
        f"{tmp_path}/secret.png",
        f"file://{tmp_path}/secret.png",
        f"{root}/../secret.png",
        f"{root}-other/x.png",
        "http://127.0.0.1:1/x.png",
        "sftp://127.0.0.1:1/x.png",  # creating this filesystem would already connect
        "nosuchscheme://x/y.png",
        f"memory://{root}/2.png",
        "/etc/passwd",
    ]
    source, samples = drawn(root / "mix.data", inside + outside, kind)
    rows = failed(samples)
    assert [row["sample_id"] for row in rows] == [f"mix.data:{len(inside) + row}" for row in range(len(outside))]
    assert {row["kind"] for row in rows} == {"outside"}
    assert all(f"row {len(inside) + number}: " in row["message"] for number, row in enumerate(rows))
    assert all("allow_outside" in row["message"] for row in rows)
    assert samples.listed == len(inside) + len(outside)
    assert all(load_image(sample["image"], source) for sample in samples)


def test_allow_outside_permits_paths_outside_the_folder(root, tmp_path):
    source, samples = drawn(
        root / "mix.json", ["../secret.png", f"{tmp_path}/secret.png"], "llava_json", allow_outside=True
    )
    assert len(samples) == 2
    assert not failed(samples)
    assert all(load_image(sample["image"], source) for sample in samples)


def test_the_error_names_allow_outside_when_every_path_is_outside(root):
    with pytest.raises(SourceError, match=r"none of its 2 rows .*'source\.allow_outside'"):
        drawn(root / "mix.json", ["../secret.png", "/etc/passwd"], "llava_json")


@pytest.mark.parametrize("kind", ["llava_json", "paths"])
def test_symbolic_links_are_resolved_when_an_image_is_read(kind, root, tmp_path):
    os.symlink(tmp_path / "secret.png", root / "link.png")
    os.symlink(tmp_path, root / "up")
    os.symlink(root / "a", root / "within")
    source, samples = drawn(root / "mix.data", ["link.png", "up/secret.png", "within/1.png", "late.png"], kind)
    os.symlink(tmp_path / "secret.png", root / "late.png")  # the link appears after listing
    kinds = {}
    for sample in samples:
        try:
            load_image(sample["image"], source)
        except RowError as error:
            kinds[sample["image"]["id"]] = error.kind
    assert kinds == dict.fromkeys(["link.png", "up/secret.png", "late.png"], "outside")
    allowed = source.model_copy(update={"allow_outside": True})
    assert all(load_image(sample["image"], allowed) for sample in samples)


def test_a_linked_folder_accepts_its_own_path_and_its_target(root, tmp_path):
    os.symlink(root, tmp_path / "alias")
    names = ["2.png", f"{root}/a/1.png", f"{tmp_path}/alias/a/1.png"]
    for path in (root / "mix.json", tmp_path / "alias" / "mix.json"):
        source, samples = drawn(path, names, "llava_json")
        expected = names if "alias" in str(path) else names[:2]
        assert sorted(ids(samples)) == sorted(expected)
        assert all(load_image(sample["image"], source) for sample in samples)


def test_paths_are_confined_to_the_images_or_source_folder(root, tmp_path):
    source, samples = drawn(tmp_path / "mix.json", ["2.png", "../secret.png"], "llava_json", images=str(root))
    assert ids(samples) == ["2.png"]
    (root / "tables" / "deep").mkdir(parents=True)
    source, samples = drawn(root / "tables" / "deep" / "x.parquet", ["../../2.png"], "paths", whole=root)
    assert all(load_image(sample["image"], source) for sample in samples)
    with pytest.raises(SourceError, match="is outside"):
        drawn(root / "tables" / "deep" / "x.parquet", ["../../2.png"], "paths", whole=root / "tables")


def test_a_folder_source_may_link_to_images_outside(root, tmp_path):
    os.symlink(tmp_path / "secret.png", root / "own.png")
    source, samples = drawn(root / "x.json", ["2.png"], "llava_json")
    assert load_image({**samples[0]["image"], "uri": f"{root}/own.png"}, source.model_copy(update={"kind": "folder"}))


def test_paths_are_confined_to_a_remote_folder(tmp_path):
    box = f"memory://{uuid.uuid4().hex}"
    for name in ("set/1.png", "secret.png"):
        with fsspec.open(f"{box}/{name}", "wb") as file:
            file.write(picture())
    names = [
        "1.png",
        f"{box}/set/1.png",
        "../secret.png",
        f"{box}/secret.png",
        f"{box}/set/../secret.png",
        "/etc/x.png",
    ]
    with fsspec.open(f"{box}/set/mix.json", "w") as file:
        json.dump([{"image": name} for name in names], file)
    config = RunConfig.model_validate(
        {
            "source": {"kind": "llava_json", "path": f"{box}/set/mix.json", "count": None, "min_side": 4},
            "evaluate": {"source": {"kind": "miniworld", "split": "test", "count": 2}},
        }
    )
    samples = training_samples(config, 1)
    assert sorted(ids(samples)) == sorted(names[:2])
    assert len(failed(samples)) == 4
    assert all(load_image(sample["image"], config.source) for sample in samples)


@pytest.mark.parametrize(
    ("uri", "folder", "inside"),
    [
        ("https://host/set/a.png", "https://host/set", True),
        ("https://host/set/%2e%2e/a.png", "https://host/set", False),
        ("https://host/set/..%2fa.png", "https://host/set", False),
        ("https://host/set/50%25.png", "https://host/set", True),
        ("https://host.evil/set/a.png", "https://host", False),
        ("http://host/set/a.png", "https://host/set", False),
        ("ftp://host/set/a.png", "ftp://host/set", True),
        ("ftp://other/set/a.png", "ftp://host/set", False),
        ("ftp://user@host/set/../a.png", "ftp://host/set", False),
        ("s3://box/set/10::30.png", "s3://box/set", True),
        ("s3://box/set/a::file:///etc/x.png", "s3://box/set", False),
        ("s3://box/set/a::/etc/x.png", "s3://box/set", False),
        ("simplecache::s3://box/set/a.png", "s3://box/set", False),
        ("simplecache::s3://box/set/a.png", "simplecache::s3://box/set", True),
        ("simplecache::s3://box/set/a::file://x.png", "simplecache::s3://box/set", False),
        ("simplecache::s3://box/other/a.png", "simplecache::s3://box/set", False),
        ("local:///data/a.png", "/data", True),
        ("local:///etc/a.png", "/data", False),
        ("file://host/data/a.png", "/data", False),
        ("/data/%2e%2e/a.png", "/data", True),  # local names are not percent-decoded
        ("/database/a.png", "/data", False),
        ("/data", "/data", False),
        ("relative.png", "/data", False),
    ],
)
def test_is_inside_recognizes_equivalent_spellings(uri, folder, inside):
    assert is_inside(uri, folder) == inside


def test_evaluation_on_the_training_path_inherits_allow_outside():
    here = {"kind": "llava_json", "path": "/a/mix.json", "allow_outside": True}
    same, own = (
        RunConfig.model_validate({"source": here, "evaluate": {"source": {"kind": "llava_json", **other}}})
        for other in ({}, {"path": "/b/mix.json"})
    )
    assert same.evaluate.source.allow_outside
    assert not own.evaluate.source.allow_outside


@pytest.mark.parametrize("name", ["b.png#escaped", "c.png#offset=0&length=5", "d.png#column=x&row_group=0&row=0"])
def test_a_link_whose_name_looks_like_an_address_is_resolved_as_a_file(name, root, tmp_path):
    (root / name).symlink_to(tmp_path / "secret.png")
    source, samples = drawn(root / "rows.json", [name, "2.png"], "llava_json")
    kinds = {}
    for sample in samples:
        try:
            load_image(sample["image"], source)
            kinds[sample["image"]["id"]] = "read"
        except RowError as error:
            kinds[sample["image"]["id"]] = error.kind
    assert kinds == {name: "outside", "2.png": "read"}


@pytest.mark.parametrize("character", ["\t", "\n", "\r"])
def test_characters_stripped_by_http_clients_do_not_hide_parent_folders(character):
    assert not is_inside(f"http://h/imgs/.{character}./secret.png", "http://h/imgs")

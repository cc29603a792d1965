"""Image paths in imported records are confined to the configured folder unless ``allow_outside`` is set."""

import json
import os

import pytest

from jsfree.config import Imported, RunConfig, build
from jsfree.errors import RowError
from jsfree.exchange import UnusableRecord, preferences
from jsfree.exchange.importing import imported_uri
from jsfree.images.confinement import Confinement

ROOT = "/data/set"


def image_uri(path: str, start: str, folder: str, *, allow_outside: bool) -> str:
    return imported_uri(path, start, Confinement(folder, allow_outside, "imported"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", "/data/set/a.png"),
        ("b/../a.png", "/data/set/b/../a.png"),
        ("/data/set/b/a.png", "/data/set/b/a.png"),
        ("file:///data/set/a.png", "/data/set/a.png"),
        ("a::b.png", "/data/set/a::b.png"),
        ("~/a.png", "/data/set/~/a.png"),
        ("..a.png", "/data/set/..a.png"),
        ("file:/etc/passwd", "/data/set/file:/etc/passwd"),
        ("a.tar#offset=0&length=9", "/data/set/a.tar#offset=0&length=9"),
    ],
)
def test_a_path_inside_the_folder_is_accepted(path, expected):
    assert image_uri(path, ROOT, ROOT, allow_outside=False) == expected


OUTSIDE = [
    "../a.png",
    "b/../../a.png",
    "../set2/a.png",
    "/data/set2/a.png",
    "/etc/passwd",
    "file:///etc/passwd",
    "file:///data/set/../a.png",
    "local:///etc/passwd",
    "FILE:///etc/passwd",
    "file://data/set/a.png",
    "http://169.254.169.254/latest",
    "s3://bucket/a.png",
    "zip://a.png::/data/set/a.zip",
    "simplecache::file:///etc/passwd",
    "../a.tar#offset=0&length=9",
    "/data/set",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_outside_the_folder_is_refused_unless_allowed(path):
    with pytest.raises(RowError, match=r"is outside /data/set; move it there.*'imported\.allow_outside'") as error:
        image_uri(path, ROOT, ROOT, allow_outside=False)
    assert error.value.kind == "outside"
    assert image_uri(path, ROOT, ROOT, allow_outside=True).endswith(path.rpartition("//")[2])


@pytest.mark.parametrize(
    "path",
    ["../x/a.png", "s3://bucket/set2/a.png", "s3://other/set/a.png", "/etc/passwd", "%2e%2e/a.png", "b/%2E%2E/../a.png",
     "file:///etc/passwd", "s3://bucket/set/../x.png", "s3://bucket/set/x::file:///etc/passwd"],
)  # fmt: skip
def test_a_path_outside_a_remote_folder_is_refused(path):
    with pytest.raises(RowError, match="is outside s3://bucket/set;"):
        image_uri(path, "s3://bucket/set", "s3://bucket/set", allow_outside=False)
    for inside in ("a.png", "b/a.png", "s3://bucket/set/a.png"):
        assert image_uri(inside, "s3://bucket/set", "s3://bucket/set", allow_outside=False).startswith(
            "s3://bucket/set/"
        )


def imported(folder, paths, **settings) -> list:
    rows = [{"images": [path], "prompt": f"What {number}?", "chosen": "A cat.", "rejected": "A dog."}
            for number, path in enumerate(paths)]  # fmt: skip
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(preferences(Imported(format="trl", path=str(folder), **settings)))


def test_symbolic_links_are_resolved_before_the_check(tmp_path):
    real, secret = tmp_path / "real", tmp_path / "secret.png"
    (real / "images").mkdir(parents=True)
    secret.touch()
    os.symlink(secret, real / "images" / "link.png")
    os.symlink(tmp_path, real / "up")
    os.symlink(real, tmp_path / "set")
    paths = ["../images/a.png", "../images/link.png", "../up/secret.png", f"{real}/images/a.png", "../../secret.png"]
    found = imported(tmp_path / "set", paths)
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, True, False, True]
    assert str(found[1].error).startswith(f"{tmp_path}/set/data/train.jsonl, row 1: the image '../images/link.png' is")
    assert not [
        each for each in imported(tmp_path / "set", paths, allow_outside=True) if isinstance(each, UnusableRecord)
    ]


@pytest.mark.parametrize("address", ["up/x.tar#offset=0&length=9", "%2e%2e/x.tar#escaped", "up/x.tar#escaped",
     "%2e%2e/x.tar#escaped#offset=0&length=9"])  # fmt: skip
def test_the_address_of_a_tar_member_is_checked_by_its_file(tmp_path, address):
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "x.tar").touch()
    os.symlink(tmp_path, tmp_path / "set" / "data" / "up")
    (found,) = imported(tmp_path / "set", [address.replace("%2e%2e", "%2e%2e/%2e%2e")])
    assert isinstance(found, UnusableRecord)
    assert found.error.kind == "outside"


def test_images_are_confined_to_the_image_folder_if_one_is_set(tmp_path):
    (tmp_path / "images").mkdir()
    paths = ["a.png", "../set/data/a.png", str(tmp_path / "images" / "a.png")]
    found = imported(tmp_path / "set", paths, images=str(tmp_path / "images"))
    assert [isinstance(each, UnusableRecord) for each in found] == [False, True, False]


def test_allow_outside_at_its_default_keeps_the_fingerprint_of_older_runs():
    given = {"imported": {"format": "trl", "path": "a"}}
    before = build(given, where="test")
    settings = before.model_dump(mode="json")
    del settings["imported"]["allow_outside"]
    assert RunConfig.model_validate(settings).fingerprint("imported") == before.fingerprint("imported")
    assert before.fingerprint("imported") == "105a5b794b93660c"
    allowing = build({"imported": {**given["imported"], "allow_outside": True}}, where="test")
    assert allowing.fingerprint("imported") != before.fingerprint("imported")

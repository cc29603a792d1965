"""Every image file in a folder is found whatever its name, and files in unsupported formats are reported."""

import hashlib
import io
import logging
import os
import uuid

import fsspec
import pytest
from PIL import Image

from jsfree.errors import RowError, SourceError
from jsfree.images.decoding import load_image
from jsfree.images.formats import FORMATS, PREFIX, format_by_content, kind_by_name
from jsfree.images.ranges import Cell, Escaped, Part, file_at, parse_address, uri_of
from jsfree.run.filesystems import filesystem_of
from jsfree.uris import has_scheme
from tests.support.example_tars import LIMITS, ids, packed, picture, samples

ODD_NAMES = [
    "10::30.png",
    "a#b.png",
    "q?.png",
    "%41.png",
    "~x.png",
    "br[1].png",
    "*.png",
    "{a,b}.png",
    " .png",
    "é.png",
]
LIKE_ADDRESSES = ["x#offset=0&length=9", "x.parquet#column=a&row_group=0&row=0", "caf%E9.png#escaped"]
NOT_UTF8 = b"caf\xe9.png"
HEIC, AVIF = (b"\0\0\0\x18ftyp" + brand + bytes(20) for brand in (b"heic", b"avif"))


def expect_all_readable(found, names):
    assert sorted(ids(found)) == sorted(names)
    for sample in found:
        sample["image"]["uri"].encode()  # must be valid UTF-8 to be stored in a table
        image, digest = load_image(sample["image"], LIMITS)
        assert digest == hashlib.sha256(picture(names.index(sample["image"]["id"]))).hexdigest()
        assert image.size == (16, 12)


@pytest.mark.parametrize("folder", ["plain", "a::b", "br[1]", "#h?%41", "~home", "http:", "{0..3}", "*"])
def test_special_characters_in_names_are_taken_literally(folder, tmp_path, monkeypatch):
    root = tmp_path / folder
    root.mkdir()
    names = [*ODD_NAMES, *LIKE_ADDRESSES, r"caf\xe9.png"]
    for number, name in enumerate([*ODD_NAMES, *LIKE_ADDRESSES, os.fsdecode(NOT_UTF8)]):
        (root / name).write_bytes(picture(number))
    for path in (root, f"{root}/", f"file://{root}"):
        expect_all_readable(samples(path, kind="folder"), names)
    monkeypatch.chdir(tmp_path)
    expect_all_readable(samples(folder, kind="folder"), names)
    expect_all_readable(samples(f"./{folder}", kind="folder"), names)


@pytest.mark.parametrize("folder", ["a::b", "br[1]", "{0..3}", "*", "caf\udce9"])
def test_tar_files_are_found_in_folders_with_special_characters(folder, tmp_path):
    root = tmp_path / folder
    root.mkdir()
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        (root / f"x-{number}.tar").write_bytes(packed({name: picture(number)}))
    (root / "y[0].tar").write_bytes(packed({"y.png": picture(9)}))
    for pattern in ("", "/x-?.tar", "/x-{0..3}.tar", "/x-[0-3].tar", "/x*"):
        found = [sample for sample in samples(f"{root}{pattern}") if sample["image"]["id"] != "y.png"]
        expect_all_readable(found, names)
    assert ids(samples(f"{root}/y[0].tar")) == ["y.png"]
    assert ids(samples(f"{tmp_path}/*/y[[]0].tar" if folder != "*" else f"{root}/y*")) == ["y.png"]


def test_a_leading_tilde_is_the_home_folder_unless_a_folder_has_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert filesystem_of("~/x")[1] == f"{tmp_path}/home/x"
    (tmp_path / "~" / "x").mkdir(parents=True)
    assert filesystem_of("~/x")[1] == f"{tmp_path}/~/x"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("http://box/10::30.png", "http://box/10::30.png"),
        ("http://box/a::b/c::d.png", "http://box/a::b/c::d.png"),
        ("file:///a/b::c.png", "/a/b::c.png"),
        ("/a/b::c://d", "/a/b::c://d"),
        ("/http://x/y.png", "/http://x/y.png"),
        ("/a/b/", "/a/b"),
        ("/", "/"),
    ],
)
def test_double_colons_in_a_name_do_not_chain_filesystems(uri, path):
    assert filesystem_of(uri)[1] == path


def test_chained_filesystems_are_supported():
    assert has_scheme("simplecache::memory://box/x.png")
    filesystem, path = filesystem_of("simplecache::memory://box/x.png")
    assert (type(filesystem).__name__, path) == ("SimpleCacheFileSystem", "/box/x.png")


def test_addresses_survive_a_round_trip_through_uris():
    for each in (Part("/a b.tar", 5, 9), Cell("s3://b/x.parquet", "a&b#=é", 3, 17), Escaped("/a\udce9#b")):
        assert parse_address(each.uri) == each
        assert each.uri.encode()
    for path in ("/a.png", "/a#b", "/x.png#offset=1", "memory://x/y#row=1", "/caf%E9.png"):
        assert parse_address(path) is None
        assert uri_of(path) == path
    for path in ("/x#offset=1&length=2", "/caf\udce9.png", "/x#escaped", "s3://b/x#escaped"):
        assert isinstance(parse_address(uri_of(path)), Escaped)
        assert file_at(uri_of("/x#escaped"))[1] == "/x#escaped"


# --- which files are images


def encoded(kind):
    sink = io.BytesIO()
    Image.new("RGB", (16, 12)).save(sink, kind)
    return sink.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_recognized_by_its_first_bytes(kind):
    assert format_by_content(encoded(kind)[:PREFIX]) == kind


def test_every_extension_of_the_supported_formats_is_known():
    Image.init()
    of_formats = {extension for extension, kind in Image.EXTENSION.items() if kind in FORMATS}
    assert {extension for extension in of_formats if kind_by_name(f"x{extension.upper()}") != "image"} == set()


def test_text_is_not_recognized_as_an_image():
    for prefix in (b"", b"BM", b"BM is short for", b"RIFF1234WAVEfmt ", b"<svg", b"\0" * PREFIX, b"II*", b"GIF"):
        assert format_by_content(prefix[:PREFIX]) is None


def where(root, remote):
    if not remote:
        return root
    uri = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(root), uri, recursive=True)
    return uri


@pytest.mark.parametrize("remote", [False, True])
def test_images_with_rare_or_missing_extensions_are_found(remote, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    names = ["a.jfif", "b.JPE", "5f3a9c", "frame.0001", "photo.jpg_large", "x.unheard-of"]
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number))
    for name in ("LICENSE", "notes.txt", "README.md", "a.weights", "picture.txt"):
        (root / name).write_bytes(picture() if name.endswith("e.txt") else b"no image at all")
    (root / "empty").touch()
    expect_all_readable(samples(where(root, remote), kind="folder"), names)
    (tmp_path / "x.tar").write_bytes(packed({path.name: path.read_bytes() for path in root.iterdir()}))
    expect_all_readable(samples(tmp_path / "x.tar"), names)


def test_pipes_and_broken_links_are_ignored(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken")
    (tmp_path / "locked").mkdir(mode=0o000)
    (tmp_path / "a.png").write_bytes(picture())
    assert ids(samples(tmp_path, kind="folder")) == ["a.png"]


@pytest.mark.parametrize("remote", [False, True])
def test_heic_and_avif_files_are_reported(remote, tmp_path, caplog):
    root = tmp_path / "in"
    root.mkdir()
    for name, content in {"a.HEIC": HEIC, "b.heif": HEIC, "c": AVIF, "d.avif": AVIF}.items():
        (root / name).write_bytes(content)
    with pytest.raises(SourceError, match=r"only 2 HEIC and 2 AVIF files.*convert them"):
        samples(where(root, remote), kind="folder")
    (root / "e.jpg").write_bytes(HEIC)
    with caplog.at_level(logging.WARNING):
        (found,) = samples(where(root, remote), kind="folder")
    assert "ignoring 2 HEIC and 2 AVIF files" in caplog.text
    with pytest.raises(RowError, match="is HEIC; convert it") as caught:
        load_image(found["image"], LIMITS)
    assert caught.value.kind == "unsupported_format"

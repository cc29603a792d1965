"""WebDataset shards are listed from their headers and read by byte ranges."""

import hashlib
import http.server
import io
import logging
import re
import tarfile
import threading
import uuid

import fsspec
import pyarrow as pa
import pytest

from jsfree.config import RunConfig, Source
from jsfree.images.decoding import load_image
from jsfree.images.tars import expand_braces
from tests.support.example_tars import LIMITS, failure, ids, packed, picture, samples

# --- listing


def test_only_images_are_listed_and_read_from_their_shards(shards):
    found = samples(shards)
    assert sorted(ids(found)) == [f"coco/{number:09d}.png" for number in range(30)]
    for sample in found:
        image = sample["image"]
        assert image["bytes"] is None  # samples store addresses instead of image bytes
        number = int(re.search(r"\d+", image["id"])[0])
        decoded, digest = load_image(image, LIMITS)
        assert decoded.getpixel((3, 3)) == (number, 0, 30)
        assert digest == hashlib.sha256(picture(number)).hexdigest()


def test_folder_glob_brace_and_remote_paths_give_the_same_samples(shards):
    remote = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(shards), remote, recursive=True)
    expected = ids(samples(shards, count=12, seed=3))
    for path in (
        f"{shards}/",
        f"{shards}/*.tar",
        f"{shards}/shard-00?.tar",
        f"{shards}/shard-{{000..002}}.tar",
        f"{shards}/shard-{{002,000,001}}.tar",
        f"file://{shards}/shard-0{{0..0}}{{0,1,2}}.tar",
        remote,
        f"{remote}/shard-{{002..000}}.tar",
        f"{remote}/sh*.tar",
    ):
        found = samples(path, count=12, seed=3)
        assert ids(found) == expected, path
        assert load_image(found[0]["image"], LIMITS)[0].size == (16, 12)
    assert len(samples(shards / "shard-001.tar")) == 10


def test_a_packed_folder_gives_the_same_sample_as_the_folder(tmp_path):
    folder = tmp_path / "pictures"
    names = [f"{part}/{number}.png" for part in ("a", "b/deep") for number in range(20)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    for shard in range(4):
        content = packed({name: (folder / name).read_bytes() for name in names[shard::4]})
        (tmp_path / f"{shard}.tar").write_bytes(content)
    from_folder, from_tars = samples(folder, 15, kind="folder"), samples(tmp_path / "{0..3}.tar", 15)
    assert ids(from_tars) == ids(from_folder)
    hashes = [[load_image(s["image"], LIMITS)[1] for s in found] for found in (from_folder, from_tars)]
    assert hashes[0] == hashes[1]


def test_names_in_several_shards_stay_distinct_and_removing_a_shard_keeps_the_order(tmp_path):
    for shard in "abc":
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"{shard}.tar").write_bytes(packed({f"{n:04d}.png": picture(n) for n in range(40)}))
    before = ids(samples(tmp_path))
    assert len(set(before)) == 120
    assert "deep/a:0007.png" in before
    (tmp_path / "deep" / "b.tar").unlink()
    assert ids(samples(tmp_path)) == [name for name in before if not name.startswith("deep/b:")]
    (tmp_path / "deep" / "c.tar").unlink()
    alone = ids(samples(tmp_path))
    assert alone == [name.removeprefix("deep/a:") for name in before if name.startswith("deep/a:")]


def test_the_last_member_wins_when_a_shard_repeats_a_name(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(packed({"a.png": picture(1)}))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(picture(2))
        tar.addfile(info, io.BytesIO(picture(2)))
    (found,) = samples(path)
    assert load_image(found["image"], LIMITS)[0].getpixel((0, 0)) == (2, 0, 30)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_non_ascii_names_are_read_in_every_tar_format(form, tmp_path):
    names = [f"{'d' * 90}/{'e' * 60}.jpg", "küche/naïve café.png", "../../out.png", "/etc/x.png", "a.b.c.PNG"]
    path = tmp_path / "deep" / "er" / "x.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed({name: picture() for name in names}, form))
    found = samples(path)
    assert sorted(ids(found)) == sorted(names)
    assert all(load_image(sample["image"], LIMITS) for sample in found)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]  # nothing was extracted


def test_a_name_that_is_not_utf8_is_escaped(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("caf\xe9.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    (found,) = samples(tmp_path / "x.tar")
    assert found["image"]["id"] == r"caf\xe9.png"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("x{a,b}{0..1}", ["xa0", "xa1", "xb0", "xb1"]),
        ("{a,b{1,2}}", ["a", "b1", "a", "b2"]),
        ("{abc}", ["{abc}"]),
        ("{a,}z", ["az", "z"]),
    ],
)
def test_expand_braces(pattern, names):
    assert list(expand_braces(pattern)) == names


def test_a_stage_captions_images_in_shards_and_records_bad_ones(tmp_path):
    from jsfree import schemas
    from jsfree.miniworld import world
    from jsfree.stages.captioning import PairGenerator

    members = {f"{n}.png": world.png_bytes(world.scene("unlabelled", n)) for n in range(4)} | {"bad.png": b"no image"}
    (tmp_path / "a.tar").write_bytes(packed(members))
    (tmp_path / "b.tar").write_bytes(packed({"gone.png": picture()}))
    found = samples(tmp_path)
    (tmp_path / "b.tar").unlink()
    settings = RunConfig.model_validate({"generate": {"decoding": {"max_new_tokens": 12}, "slots": 8}})
    output = PairGenerator(settings, "miniworld:captioner", 1)(found)
    stored = pa.Table.from_pylist(output.rows, schema=schemas.PAIRS).to_pylist()
    assert {row["image"]["id"]: row["image"]["sha256"] for row in stored} == {
        name: hashlib.sha256(content).hexdigest() for name, content in members.items() if name != "bad.png"
    }
    assert all(row["image"]["bytes"] is None and row["low"]["text"] for row in stored)
    failed = {row["sample_id"].split("@")[0]: row["kind"] for row in output.errors}
    assert failed == {"bad.png": "undecodable", "gone.png": "missing"}


# --- ranged reading


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves byte ranges and records them; responds with 403 once ``server.shut`` is set."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.server.shut:
            self.send_error(403)
            return
        content = self.server.content
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(content))) if asked else (0, len(content))
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.server.asked.append((start, end))
            self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as running:
        running.content, running.asked, running.shut = b"", [], False
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_an_image_over_http_takes_one_range_request_and_403_makes_it_unreadable(server):
    server.content = packed({f"{n}.png": picture(n) for n in range(20)})
    found = samples(f"http://127.0.0.1:{server.server_port}/shard.tar?signature=abc")
    assert len(found) == 20
    server.asked.clear()
    image = found[7]["image"]
    load_image(image, LIMITS)
    start, end = map(int, re.search(r"offset=(\d+)&length=(\d+)$", image["uri"]).groups())
    assert server.asked == [(start, start + end)]
    server.shut = True
    refused = failure(image)
    assert (refused.kind, "\n" in str(refused)) == ("unreadable", False)


def test_listing_does_not_read_images(tmp_path):
    """The first member of a sparse file claims 20 GB, which would not fit into memory."""
    path = tmp_path / "x.tar"
    huge = tarfile.TarInfo("huge.png")
    huge.size = 20 * 2**30
    with path.open("wb") as file:
        file.write(huge.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + huge.size)
        file.write(packed({"small.png": picture()}))
    found = {sample["image"]["id"]: sample["image"] for sample in samples(path)}
    assert failure(found["huge.png"], Source()).kind == "too_many_bytes"
    assert load_image(found["small.png"], LIMITS)[0].size == (16, 12)


def test_links_devices_and_folders_are_ignored_with_a_warning(tmp_path, caplog):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in {
            "passwd.png": tarfile.SYMTYPE,
            "same.png": tarfile.LNKTYPE,
            "pipe.png": tarfile.FIFOTYPE,
            "disk.png": tarfile.BLKTYPE,
            "folder.png": tarfile.DIRTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    with caplog.at_level(logging.WARNING):
        assert ids(samples(tmp_path / "x.tar")) == ["real.png"]
    assert "ignoring 4 images that are links, devices or sparse files" in caplog.text

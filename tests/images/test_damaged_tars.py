"""Incomplete, missing, compressed and malicious shards raise a one-line error; a bad member is one error row."""

import bz2
import gzip
import lzma
import os
import random
import re
import tarfile

import pytest

from jsfree.errors import SourceError
from tests.support.example_tars import failure, packed, picture, samples


def cut_versions():
    whole = packed({f"{n}.png": picture(n) for n in range(4)})
    member = 1024  # one header and one data block
    joined = whole + packed({"late.png": picture()})
    damaged = bytearray(whole)
    damaged[2 * member : 2 * member + 100] = b"\xff" * 100
    return {
        "within an image": (whole[: 3 * member + 600], "unexpected end of data"),
        "within a header": (whole[: 3 * member + 100], "truncated at byte 3172"),
        "between two members": (whole[: 3 * member], "truncated at byte 3072, without an end marker"),
        "a damaged header": (bytes(damaged), "damaged header at byte 2048"),
        "two files in one": (joined, "several concatenated tar files"),
        "nothing": (b"", r"\(empty file"),
        "a web page": (b"<html>not found</html>" * 100, "file could not be opened|header"),
    }


@pytest.mark.parametrize("what", cut_versions())
def test_an_incomplete_shard_is_named_in_the_error(what, shards):
    content, message = cut_versions()[what]
    (shards / "shard-001.tar").write_bytes(content)
    with pytest.raises(
        SourceError, match=rf"shard-001\.tar is not a complete tar file.*{message}.*again, or remove"
    ) as caught:
        samples(shards)
    assert "\n" not in str(caught.value)


def test_the_error_for_compressed_shards_recommends_gunzip(shards):
    whole = (shards / "shard-001.tar").read_bytes()
    for pack, name in ((gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")):
        (shards / "shard-001.tar").write_bytes(pack(whole))
        with pytest.raises(SourceError, match=rf"shard-001\.tar is compressed with {name}.*gunzip"):
            samples(shards)
    (shards / "shard-001.tar").rename(shards / "shard-001.tar.gz")
    for path in (shards, shards / "shard-001.tar.gz", shards / "*"):
        with pytest.raises(SourceError, match=r"shard-001\.tar\.gz is compressed, .*gunzip"):
            samples(path)


def test_paths_without_images_are_named_in_the_error(shards, tmp_path):
    with pytest.raises(SourceError, match=r"shard-003\.tar does not exist; restore the shard"):
        samples(f"{shards}/shard-{{000..003}}.tar")
    with pytest.raises(SourceError, match=r"nowhere does not exist.*source\.path"):
        samples(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"none-\*\.tar matches no \.tar file"):
        samples(f"{shards}/none-*.tar")
    with pytest.raises(SourceError, match=r"README\.md matches no \.tar file"):
        samples(shards / "README.md")
    with pytest.raises(SourceError, match="more than 100000 shards"):
        samples(f"{shards}/{{0..999999999}}.tar")
    with pytest.raises(SourceError, match=r"nosuchscheme://a\.tar cannot be read"):
        samples("nosuchscheme://a.tar")
    (tmp_path / "texts.tar").write_bytes(packed({"a.txt": b"text"}))
    with pytest.raises(SourceError, match=r"texts\.tar has no images"):
        samples(tmp_path / "texts.tar")
    with pytest.raises(SourceError, match=r"has \.tar files but no images; set 'source\.kind' to webdataset"):
        samples(shards, kind="folder")


def test_a_bad_member_is_one_error_row(tmp_path):
    path = tmp_path / "x.tar"
    large = b"\x89PNG" + os.urandom(120_000)
    path.write_bytes(packed({"empty.png": b"", "html.png": b"<html>", "large.png": large, "last.png": picture()}))
    found = {sample["image"]["id"]: sample["image"] for sample in samples(path)}
    kinds = {name: failure(found[name]).kind for name in ("empty.png", "html.png", "large.png")}
    assert kinds == {"empty.png": "undecodable", "html.png": "undecodable", "large.png": "too_many_bytes"}
    end = int(re.search(r"offset=(\d+)", found["last.png"]["uri"])[1])
    os.truncate(path, end + 10)
    assert "truncated (10 of" in str(failure(found["last.png"]))
    path.unlink()
    assert failure(found["last.png"]).kind == "missing"


def test_malicious_headers_are_refused_quickly_and_in_little_memory(tmp_path):
    path = tmp_path / "x.tar"

    def refused(*blocks):
        with path.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.truncate(60 * 2**30)  # sparse; the zeros end the file like the end of a tar archive
        with pytest.raises(SourceError, match=r"x\.tar is not a complete tar file"):
            samples(path)

    names = tarfile.TarInfo("names")
    names.type, names.size = tarfile.XHDTYPE, 50 * 2**30
    refused(names.tobuf())
    names.type = tarfile.GNUTYPE_LONGNAME
    refused(names.tobuf())
    back = tarfile.TarInfo("back.png")
    back.size = -1024
    refused(packed({"a.png": picture()})[:1024], back.tobuf(tarfile.GNU_FORMAT))
    chain = tarfile.TarInfo("chain")
    chain.type = tarfile.XHDTYPE
    refused(chain.tobuf() * 3000)


def test_random_damage_raises_only_source_errors(tmp_path):
    rng = random.Random(7)
    whole = [
        packed({f"{'n' * 120}{n}é.png": picture(n) for n in range(3)}, form)
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    path = tmp_path / "x.tar"
    listed = refused = 0
    for turn in range(200):
        damaged = bytearray(whole[turn % 2])
        for _ in range(rng.randint(1, 6)):
            block = rng.randrange(0, 8) * 512
            damaged[block + rng.randrange(512)] = rng.randrange(256)
        if turn % 3 == 0:  # correct the checksum of the first header, so that its fields are read
            damaged[148:156] = b" " * 8
            damaged[148:156] = f"{sum(damaged[:512]):06o}\0 ".encode()
        path.write_bytes(damaged)
        try:
            samples(path)
            listed += 1
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert listed > 20
    assert refused > 20

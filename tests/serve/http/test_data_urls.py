"""The grammar of data URLs, and that decoding one costs memory in proportion to its length."""

import base64
import tracemalloc

import pytest

from serve.http.data_urls import MAX_HEADER, TooLongError, parse

CONTENT = bytes(range(256)) * 3


@pytest.mark.parametrize(
    "url",
    ["", "data:", "data:image/png;base64", "http://a/b,c", "xdata:,a", "data,a", " : ,", "data :,a", "x:data:,a"],
)
def test_other_texts_are_not_data_urls(url):
    assert parse(url) is None


def test_the_search_for_the_comma_is_bounded():
    assert parse(f"data:image/png;{'x' * MAX_HEADER};base64,AAAA") is None


@pytest.mark.parametrize(
    ("url", "media_type", "is_base64"),
    [
        ("data:,x", "", False),
        ("data:;base64,x", "", True),
        ("data:image/PNG,x", "image/png", False),
        ("Data:image/png;BASE64,x", "image/png", True),
        ("data:image/png; charset=UTF-8 ; base64 ,x", "image/png", True),
        ("data:image/png;base64;name=a%2Cb.png,x", "image/png", True),
        ("data:image/png;name=base64,x", "image/png", False),
    ],
)
def test_type_and_parameters_are_parsed(url, media_type, is_base64):
    parsed = parse(url)
    assert parsed is not None
    assert (parsed.media_type, parsed.is_base64, parsed.payload) == (media_type, is_base64, "x")


@pytest.mark.parametrize("length", [0, 1, 2, 3, 100])
def test_every_length_is_decoded_with_and_without_padding(length):
    encoded = base64.b64encode(CONTENT[:length]).decode()
    for written in (encoded, encoded.rstrip("="), encoded.replace("=", "%3D"), "\n".join(encoded)):
        assert parse(f"data:image/png;base64,{written}").content(length) == CONTENT[:length]


def test_the_limit_is_exact_and_checked_before_decoding():
    for url in (
        f"data:;base64,{base64.b64encode(CONTENT).decode()}",
        f"data:;base64,{base64.encodebytes(CONTENT).decode()}",
        "data:," + "".join(f"%{byte:02X}" for byte in CONTENT),
    ):
        assert parse(url).content(len(CONTENT)) == CONTENT
        with pytest.raises(TooLongError):
            parse(url).content(len(CONTENT) - 1)
    with pytest.raises(TooLongError):
        parse("data:;base64," + "!" * 1000).content(10)


@pytest.mark.parametrize("shift", range(4))
def test_escapes_across_chunk_borders_are_decoded(shift):
    content = bytes(shift) + CONTENT * 200
    escaped = "x" * shift + "".join(f"%{byte:02x}" for byte in CONTENT * 200)
    assert parse(f"data:,{escaped}").content(10**6)[shift:] == content[shift:]


def test_a_million_escapes_need_little_memory():
    url = "data:image/png;base64," + "%41" * 2_000_000
    tracemalloc.start()
    assert len(parse(url).content(2_000_000)) == 1_500_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(url)

import pytest

from jsfree.uris import has_scheme, is_hub_syntax, is_remote, is_written_as_path, local_path


@pytest.mark.parametrize("path", ["s3://bucket/x", "file:///x", "simplecache::memory://box/x.png", "HTTP://host/x"])
def test_uris_have_a_scheme(path):
    assert has_scheme(path)


@pytest.mark.parametrize("path", ["/x", "x", "owner/name", "a/b://c", "C://x", "miniworld:clip", "::x", ""])
def test_paths_and_names_have_no_scheme(path):
    assert not has_scheme(path)


def test_the_local_filesystem_is_not_remote():
    assert is_remote("s3://bucket/x")
    assert not any(is_remote(path) for path in ("file:///x", "local:///x", "/x"))
    assert local_path("file:///x") == local_path("local:///x") == local_path("/x") == "/x"


@pytest.mark.parametrize("ref", ["owner/name", "owner/name@main", "gpt2", "relative/folder"])
def test_valid_hub_ids_are_recognised(ref):
    assert is_hub_syntax(ref)


@pytest.mark.parametrize("ref", ["s3://bucket/x", "miniworld:captioner", "/x", "./x", "../x", "~/x"])
def test_paths_uris_and_builtin_models_are_not_hub_ids(ref):
    assert not is_hub_syntax(ref)
    assert is_written_as_path(ref) == (ref[0] in "/.~")

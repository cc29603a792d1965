"""What a user reads when a store's package is missing, or the store refuses: one line, with the path."""

import sys
import tomllib

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem

from jsfree.errors import JsfreeError, ModelError, SourceError, StorageError
from jsfree.images.listing import open_path
from jsfree.models.cache import RemoteFolder
from jsfree.models.contents import CAPTIONER
from jsfree.run.filesystems import EXTRAS, filesystem_of, reason
from jsfree.run.folder import Folder
from tests.support import ROOT


class NoCredentialsError(Exception):
    """Like botocore's: no OSError, and here on two lines."""


class Refusing(AbstractFileSystem):
    protocol = "refusing"
    cachable = False

    def _refuse(self, *args, **kwargs):
        raise NoCredentialsError("Unable to locate\n  credentials")

    exists = isdir = info = ls = cat_file = pipe_file = put = _rm = _open = _refuse  # as s3fs does


@pytest.fixture
def refusing():
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    yield "refusing://bucket/run"
    del _registry["refusing"]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda uri: Folder(uri), StorageError),
        (lambda uri: open_path(uri), SourceError),
        (lambda uri: RemoteFolder(uri, CAPTIONER), ModelError),
    ],
)
@pytest.mark.parametrize("uri", ["s3://bucket/folder", "s3a://bucket/folder"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, uri, ask, error):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # so that it cannot be imported, installed or not
    with pytest.raises(error) as raised:
        ask(uri)
    assert uri in str(raised.value)
    assert "Install s3fs to access S3: `uv sync --frozen --extra aws`" in str(raised.value)


def test_every_extra_that_is_named_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)


def test_a_package_that_no_extra_holds_is_named_as_fsspec_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match="gcsfs") as raised:
        filesystem_of("gs://bucket/folder")
    assert "--extra" not in str(raised.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda uri: Folder(uri).exists("config.yaml"),
        lambda uri: Folder(uri).names(),
        lambda uri: Folder(uri).read("config.yaml"),
        lambda uri: Folder(uri).write("config.yaml", b""),
        lambda uri: Folder(uri).table_metadata("shard-00000.parquet"),
        lambda uri: Folder(uri).remove("config.yaml"),
        lambda uri: open_path(uri),
        lambda uri: RemoteFolder(uri, CAPTIONER),
    ],
)
def test_a_store_that_refuses_in_its_own_way_is_told_in_one_line(refusing, ask):
    with pytest.raises(JsfreeError) as raised:
        ask(refusing)
    assert refusing in str(raised.value)
    assert "Unable to locate credentials" in str(raised.value)


def test_an_error_without_words_is_named_by_its_kind():
    assert reason(TimeoutError()) == "TimeoutError"
    assert reason(OSError(28, "No space left on device", "/a")) == "No space left on device"

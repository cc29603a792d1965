"""A missing package and an error of a store are reported in one line with the path."""

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
    """Like botocore's error it is not an OSError; its message has two lines."""


class Refusing(AbstractFileSystem):
    protocol = "refusing"
    cachable = False

    def _refuse(self, *args, **kwargs):
        raise NoCredentialsError("Unable to locate\n  credentials")

    exists = isdir = info = ls = cat_file = pipe_file = put = _rm = _open = _refuse  # like s3fs


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
def test_the_error_for_a_missing_package_gives_the_install_command(monkeypatch, uri, ask, error):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # makes the import fail even if the package is installed
    with pytest.raises(error) as raised:
        ask(uri)
    assert uri in str(raised.value)
    assert "Install s3fs to access S3: `uv sync --frozen --extra aws`" in str(raised.value)


def test_every_extra_named_in_errors_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)


def test_a_missing_package_without_an_extra_raises_the_error_of_fsspec(monkeypatch):
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
def test_errors_of_a_store_client_become_one_line_errors_with_the_path(refusing, ask):
    with pytest.raises(JsfreeError) as raised:
        ask(refusing)
    assert refusing in str(raised.value)
    assert "Unable to locate credentials" in str(raised.value)


def test_an_error_without_a_message_is_described_by_its_type():
    assert reason(TimeoutError()) == "TimeoutError"
    assert reason(OSError(28, "No space left on device", "/a")) == "No space left on device"

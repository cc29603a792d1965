"""The folder and the token of a local Ray session, and the errors if it cannot start."""

import os
import socket

import pytest
import ray

from jsfree import config
from jsfree.errors import StageError
from ray_jobs.cluster.session import LONGEST_SOCKET, Cluster, _provide_token, session_folder


@pytest.fixture
def no_choice(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_session_folder_is_rays_default_or_a_shorter_path(tmp_path, no_choice):
    assert session_folder() == "/tmp/ray"
    no_choice.setenv("TMPDIR", "/var/tmp")
    assert session_folder() == "/var/tmp/ray"
    no_choice.setenv("RAY_TMPDIR", "/tmp/x")
    assert session_folder() == "/tmp/x/ray"
    for long in (tmp_path / ("x" * 100), "/tmp/ü"):
        no_choice.setenv("RAY_TMPDIR", str(long))
        assert session_folder() == "/tmp/ray"
    for unusable in ("/proc/nothing", "relative", ""):
        no_choice.setenv("RAY_TMPDIR", unusable)
        assert session_folder() in ("/tmp/ray", "/var/tmp/ray")


def test_the_longest_session_folder_fits_the_longest_socket(no_choice):
    most = 107 - len(LONGEST_SOCKET) - len("/ray")
    for length, fits in ((most, True), (most + 1, False)):
        no_choice.setenv("TMPDIR", f"/tmp/{'x' * (length - 5)}")
        assert session_folder().startswith("/tmp/xxx") is fits
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="too long"):
        probe.bind("/" + "x" * 107)


def test_a_token_is_provided_if_the_home_folder_is_not_writable(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    _provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ  # Ray keeps one there
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    _provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    try:
        _provide_token()
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)


def test_no_usable_session_folder_is_a_one_line_error(no_choice):
    no_choice.setattr("ray_jobs.cluster.session.SYSTEM_FOLDER", "/proc/nothing")
    with pytest.raises(StageError, match=r"no folder for Ray's sockets: .* at most \d+ bytes; set TMPDIR"):
        session_folder()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("a\nb"), ValueError(), KeyError("x")]
)
def test_every_error_of_rays_start_is_one_line(error, monkeypatch):

    def fail(**_):
        raise error

    monkeypatch.setattr(ray, "init", fail)
    for address in (None, "auto"):
        settings = config.build({"ray": {"address": address}}, "test")
        with pytest.raises(StageError) as told, Cluster(settings) as cluster:
            cluster.ensure()
        assert "\n" not in str(told.value)
        assert type(error).__name__ in str(told.value)
        assert "--debug" in str(told.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_session_starts_with_a_long_tmpdir(tmp_path, monkeypatch):
    long = tmp_path / ("batch_system_" * 8)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with Cluster(config.RunConfig()) as cluster:
        cluster.ensure()
        assert ray.get(ray.remote(lambda: 1).remote()) == 1

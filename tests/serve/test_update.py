"""`jsfree serve --run OTHER` on a cluster that serves a run: the models are replaced, and no request is lost."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from jsfree import config
from jsfree.models.saving import publish_captioner
from jsfree.run.run import Manifest, Run
from tests.support import ROOT, asking
from tests.support.asking import chat
from tests.support.ray_head import SECONDS, free_ports, ray_head, stop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of commands on a Ray cluster of one node."""
    with ray_head("update", cpus=4) as node:
        yield {**node.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": node.address}


@pytest.fixture(scope="module")
def other_run(finished_run, tmp_path_factory) -> Run:
    """A run whose last model is m0 itself."""
    path = tmp_path_factory.mktemp("runs") / "other"
    run = Run.open(config.build({"run": str(path), "serve": asking.SERVED}, "test"))
    publish_captioner(finished_run.before.model, finished_run.before.processor, run.stage(1, "model").uri)
    run.finish(1, "train", Manifest(fingerprint="made for this test", rows_in=1, rows_out=1))
    return run


def serve(run: Run, port: int, environment: dict[str, str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", run.folder.uri, "--port", str(port)]
    with log.open("w") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)


def wait_for(process: subprocess.Popen, log: Path, text: str) -> None:
    until = time.monotonic() + SECONDS
    while text not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        assert process.poll() in (None, 0), log.read_text()
        time.sleep(0.2)


def test_another_run_replaces_the_served_one_without_a_lost_request(cluster, finished_run, other_run, tmp_path):
    (port,) = free_ports(1)
    first = serve(finished_run.run, port, cluster, tmp_path / "first.log")
    try:
        wait_for(first, tmp_path / "first.log", "Ctrl-C")
        said: list[str] = []
        stopped = threading.Event()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:

            def ask() -> None:
                while not stopped.is_set():
                    answer = client.chat.completions.create(**chat(model="after", max_tokens=40))
                    said.append(answer.choices[0].message.content)

            client_thread = threading.Thread(target=ask)
            client_thread.start()
            second = serve(other_run, port, cluster, tmp_path / "second.log")
            wait_for(second, tmp_path / "second.log", "now serves")
            assert second.wait(60) == 0
            asked = len(said)
            until = time.monotonic() + 30
            while len(said) < asked + 2 and client_thread.is_alive() and time.monotonic() < until:
                time.sleep(0.1)
            stopped.set()
            client_thread.join(60)
            before = client.chat.completions.create(**chat(model="before", max_tokens=40)).choices[0].message.content
        assert len(said) >= asked + 2  # the client's thread has not failed
        assert said[0] != before == said[-1]
        assert first.poll() is None
    finally:
        stop(first)

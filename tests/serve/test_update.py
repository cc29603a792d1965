"""A cluster that serves a run: another run replaces its models, replicas follow the load, and the end is graceful."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from jsfree import config
from jsfree.models.saving import publish_captioner
from jsfree.run.run import Manifest, Run
from serve import proxy
from serve.deploy import ENVIRONMENT, NAME
from tests.support import ROOT, asking
from tests.support.asking import chat
from tests.support.ray_head import SECONDS, RayHead, free_ports, ray_head, stop

pytestmark = pytest.mark.slow

SCALING = "serve.after.autoscaling={min: 1, max: 2, target: 2, up_after_s: 1, down_after_s: 1}"
SAMPLED = {"model": "after", "temperature": 1, "max_tokens": 150, "n": 2}
"""Captions that keep a replica busy for long compared with what their clients do between them."""
STARTER = """
import ray
from jsfree.errors import ModelError
from serve.failures import Failures, report

ray.init()
failures = Failures()
assert failures.first() is None
# In other processes, as replicas are; the second report is for a process that has ended.
for name, error in ((failures.name, ModelError("no weights", "download them")), ("failures-ended", ValueError())):
    ray.get(ray.remote(report).options(num_cpus=0).remote(name, error))
first = failures.first()
print(type(first).__name__, first.problem, first.remedy, sep="|")
ray.get(ray.remote(report).options(num_cpus=0).remote(failures.name, OSError("disk")))
print(failures.first().problem)
"""
"""A process that starts replicas, and reports of replicas in others."""
LOAD = 6
"""Clients at once: three times the load at which one replica is kept."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHead]:
    """A Ray cluster of one node, whose variables are those that the guide asks for."""
    reports = {"RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}  # of the load; default: 10 s
    with ray_head("update", cpus=6, variables={proxy.VARIABLE: proxy.CALLBACK, **ENVIRONMENT, **reports}) as node:
        yield node


@pytest.fixture(scope="module")
def other_run(finished_run, tmp_path_factory) -> Run:
    """A run whose last model is m0 itself."""
    path = tmp_path_factory.mktemp("runs") / "other"
    run = Run.open(config.build({"run": str(path), "serve": asking.SERVED}, "test"))
    publish_captioner(finished_run.before.model, finished_run.before.processor, run.stage(1, "model").uri)
    run.finish(1, "train", Manifest(fingerprint="made for this test", rows_in=1, rows_out=1))
    return run


@dataclass
class Command:
    """A `jsfree serve` process, and the file of its output."""

    process: subprocess.Popen
    log: Path

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + SECONDS
        while text not in self.log.read_text():
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() in (None, 0), self.log.read_text()
            time.sleep(0.2)


def serve(run: Run, port: int, cluster: RayHead, log: Path, *settings: str) -> Command:
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", run.folder.uri, "--port", str(port)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    with log.open("w") as out:
        return Command(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment), log)


@dataclass
class Server:
    """The server under test: the process that started it, and a client of it."""

    command: Command
    port: int
    client: openai.OpenAI
    cluster: RayHead

    def plain(self, **fields) -> str:
        """The captions, one a line."""
        choices = self.client.chat.completions.create(**chat(**fields)).choices
        return "\n".join(choice.message.content for choice in choices)

    def streamed(self, **fields) -> str:
        """The same from a stream."""
        return joined(self.chunks(**fields))

    def chunks(self, **fields) -> Iterator[ChatCompletionChunk]:
        return self.client.chat.completions.create(**chat(**fields), stream=True)

    def replicas(self) -> int:
        """Running replicas of `after`, as Serve reports them."""
        request = urllib.request.Request(
            f"{self.cluster.dashboard}/api/serve/applications/",
            headers={"Authorization": f"Bearer {self.cluster.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            applications = json.loads(answer.read())["applications"]
        states = [replica["state"] for replica in applications[NAME]["deployments"]["after"]["replicas"]]
        return states.count("RUNNING")

    def wait_for_replicas(self, count: int, load: "Load") -> None:
        until = time.monotonic() + SECONDS
        while self.replicas() != count:
            load.check()
            assert time.monotonic() < until, f"{self.replicas()} replicas instead of {count}"
            time.sleep(0.5)


def joined(chunks: Iterable[ChatCompletionChunk]) -> str:
    """The captions of a stream, one a line; each must have ended by itself."""
    texts: dict[int, str] = {}
    ended: set[int] = set()
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in ended
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason is not None:
                ended.add(choice.index)
    assert ended == set(texts)
    return "\n".join(texts[index] for index in sorted(texts))


@pytest.fixture(scope="module")
def server(cluster, other_run, tmp_path_factory) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = serve(other_run, port, cluster, tmp_path_factory.mktemp("serve") / "first.log")
    try:
        command.wait_for("Ctrl-C")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:
            yield Server(command, port, client, cluster)
    finally:
        stop(command.process)


@dataclass
class Load:
    """Clients that call functions again and again; the first error of one is raised in the test."""

    calls: list[list[str]] = field(default_factory=list)
    """The results of each client so far."""
    clients: list[Future] = field(default_factory=list)

    def check(self) -> None:
        for client in self.clients:
            if client.done():
                client.result()

    def wait_for_calls(self, count: int) -> None:
        """Wait until each client has had ``count`` more results."""
        expected = [len(results) + count for results in self.calls]
        until = time.monotonic() + SECONDS
        while any(len(results) < few for results, few in zip(self.calls, expected, strict=True)):
            self.check()
            assert time.monotonic() < until
            time.sleep(0.1)


@contextmanager
def load(*calls: Callable[[], str]) -> Iterator[Load]:
    """One client for each of ``calls`` while the block runs; none of them may fail."""
    ended = threading.Event()

    def run(call: Callable[[], str], results: list[str]) -> None:
        while not ended.is_set():
            results.append(call())

    with ThreadPoolExecutor(len(calls)) as threads:
        state = Load([[] for _ in calls])
        state.clients += [threads.submit(run, *each) for each in zip(calls, state.calls, strict=True)]
        try:
            yield state
        finally:
            ended.set()
    state.check()


@dataclass
class Replaced:
    """What two clients got while another run replaced the served one, and m0's caption of the same image."""

    plain: list[str]
    streamed: list[str]
    before: str


@pytest.fixture(scope="module")
def replaced(server, finished_run, tmp_path_factory) -> Replaced:
    """The server after ``finished_run`` has replaced ``other_run``."""
    asked = {"model": "after", "max_tokens": 40}
    with load(lambda: server.plain(**asked), lambda: server.streamed(**asked)) as clients:
        log = tmp_path_factory.mktemp("serve") / "second.log"
        second = serve(finished_run.run, server.port, server.cluster, log, SCALING)
        second.wait_for("now serves")
        assert second.process.wait(60) == 0
        clients.wait_for_calls(2)
    return Replaced(*clients.calls, before=server.plain(model="before", max_tokens=40))


def test_another_run_replaces_the_served_one_without_a_lost_request(server, replaced):
    for captions in (replaced.plain, replaced.streamed):
        assert captions[0] == replaced.before != captions[-1]  # m0 was the last model of the first run
        assert len(set(captions)) == 2
    assert server.command.process.poll() is None


@pytest.mark.soak
def test_replicas_follow_the_load_and_no_request_fails(server, replaced):
    """Streams and plain requests of the same seed give the same text on any replica, before and after it is added."""

    def ask(number: int) -> Callable[[], str]:
        way = server.streamed if number % 2 else server.plain
        return lambda: way(**SAMPLED, seed=number)

    expected = [server.plain(**SAMPLED, seed=number) for number in range(LOAD)]
    assert server.replicas() == 1
    with load(ask(1)) as remaining:
        with load(*(ask(number) for number in range(LOAD))) as clients:
            server.wait_for_replicas(2, clients)
            clients.wait_for_calls(3)
        server.wait_for_replicas(1, remaining)  # a client still streams while a replica ends
        remaining.wait_for_calls(2)
    assert [set(texts) for texts in clients.calls] == [{text} for text in expected]
    assert set(remaining.calls[0]) == {expected[1]}


def test_errors_of_replicas_reach_the_process_that_starts_them(cluster):
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-c", STARTER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS)
    assert done.stdout.splitlines() == ["ModelError|no weights|download them", "OSError: disk"], done.stderr


def answered(port: int) -> tuple[int, str | None, str]:
    """Status, Retry-After and body of a new request; status 0 if nothing listens any more."""
    body = json.dumps(chat(max_tokens=1)).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", data=body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, None, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["retry-after"], error.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return 0, None, ""


def test_at_the_end_streams_finish_and_new_requests_are_told_to_try_again(server, replaced):
    """Runs last, because it ends the server."""
    long = {**SAMPLED, "max_tokens": 400, "n": 4}
    expected = server.plain(**long, seed=0)
    streams = [iter(server.chunks(**long, seed=seed)) for seed in range(3)]
    started = [next(stream) for stream in streams]
    with ThreadPoolExecutor(3) as readers:
        texts = readers.map(joined, map(chain, ([chunk] for chunk in started), streams))
        server.command.process.terminate()
        others = [answered(server.port)]
        while server.command.process.poll() is None:
            others.append(answered(server.port))
            time.sleep(0.1)
        assert next(texts) == expected
        assert all(texts)  # `joined` asserts that each ended by itself
    assert server.command.process.returncode == 0, server.command.log.read_text()
    assert {status for status, _, _ in others} <= {200, 503, 0}
    refused = [(retry, json.loads(body)["error"]["code"]) for status, retry, body in others if status == 503]
    assert set(refused) == {("1", "unavailable")}

"""A server with recorded models on loopback, and a headless Chromium that may not leave it."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from jsfree import schemas
from jsfree.run.run import Run
from serve.http import page as pages
from serve.http import routes as api
from serve.http.protocol import RunModel
from serve.keys import NO_KEYS, Key, KeySource, sha256
from tests.support import example_run
from tests.support.recorded import AFTER, BEFORE, RecordedModel, RecordedScorer

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
KEY = "jsfree-test-key"


@dataclass
class Served:
    url: str
    run: Run
    models: dict[str, RecordedModel]
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(20)


@contextmanager
def serving(run: Run, keys: KeySource = NO_KEYS, pause: float = 0.01) -> Iterator[Served]:
    models = {"before": RecordedModel(BEFORE, pause), "after": RecordedModel(AFTER, pause)}
    named = [RunModel("before", "m0", ""), RunModel("after", "m1", "", "m0")]
    app = api.create_app(named, models, run.config.serve, run.config.prompt, keys, RecordedScorer())
    pages.install(app, run, named)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    served = Served(url, run, models, server, thread)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="session")
def shown_run(tmp_path_factory) -> Run:
    run = example_run.build(tmp_path_factory.mktemp("runs") / "kitchen", source={"count": 60})
    samples = [example_run.sample(run, "test", index) for index in range(10)]
    example_run.write_rows(run, 1, "evaluation", samples, schemas.SAMPLES)
    run.folder.write("report/index.html", b"<!doctype html><title>report</title><h1>Report</h1>")
    return run


@pytest.fixture(scope="module")
def served(shown_run) -> Iterator[Served]:
    with serving(shown_run) as served:
        yield served


@pytest.fixture
def locked(shown_run) -> Iterator[Served]:
    with serving(shown_run, KeySource((Key(name="visitor", sha256=sha256(KEY), access="all"),))) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of one file; Playwright keeps an event loop running, in which asyncio.run() fails."""
    if not Path(CHROMIUM).is_file():
        pytest.skip("needs Chromium: install the package chromium, or set CHROMIUM to the path of the program")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page whose requests and errors are recorded."""

    def __init__(self, browser, url: str, **options) -> None:
        self.context = browser.new_context(base_url=url, **options)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._heard)
        self.url = url

    def _heard(self, message) -> None:
        if "Content Security Policy" in message.text or "Content-Security-Policy" in message.text:
            self.problems.append(message.text)

    def check(self) -> None:
        """No request left the origin, no script failed, and the content security policy was not violated."""
        outside = [each for each in self.requests if not each.startswith((self.url, "data:", "blob:"))]
        assert outside == []
        assert self.problems == []


@pytest.fixture
def open_page(chromium) -> Iterator:
    opened: list[Watched] = []

    def open_one(url: str, path: str = "/", **options) -> Watched:
        watched = Watched(chromium, url, **options)
        opened.append(watched)
        watched.page.goto(path)
        return watched

    yield open_one
    for watched in opened:
        watched.context.close()
    for watched in opened:
        watched.check()

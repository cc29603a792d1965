"""Submitted jobs: a head node with a token, `ray job submit` from the project's folder, `ray job stop`."""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jsfree import schemas
from jsfree.run.folder import shard_name
from jsfree.run.run import Run
from tests.support import ROOT
from tests.support.ray_head import RAY, SECONDS, ray_head

IMAGES, SHARD = 160, 8


@dataclass
class Head:
    """A Ray head node for the tests, and the environment of its users."""

    url: str
    token: str
    environment: dict[str, str]

    def ask(self, path: str, token: str | None = None, method: str = "GET"):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def submit(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, as from a shell in the project's folder."""
        command = [RAY, "job", "submit", "--submission-id", name, "--working-dir", ".", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def status(self, name: str) -> str:
        return self.ask(f"/api/jobs/{name}", self.token)["status"]

    def logs(self, name: str) -> str:
        return self.ask(f"/api/jobs/{name}/logs", self.token)["logs"]

    def stage_actors(self) -> list[str]:
        """States of the actors that work on shards, of all jobs so far."""
        listed = self.ask("/api/v0/actors?limit=1000", self.token)["data"]["result"]["result"]
        return [actor["state"] for actor in listed if actor["class_name"].startswith("MapWorker")]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head("head", cpus=3) as node:
        started = Head(node.dashboard, node.token, {**node.environment, "RAY_ADDRESS": node.dashboard})
        wait_for(lambda: answers(started), "the head", node.log.read_text)
        yield started


def answers(head: Head) -> bool:
    try:
        head.ask("/api/jobs/", head.token)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def wait_for(condition, what: str, why=lambda: "") -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come: {why()}"
        time.sleep(0.2)


def generate(run: Path) -> list[str]:
    settings = (f"source.count={IMAGES}", f"shard_rows={SHARD}", "generate.resources.replicas=1")
    options = [part for setting in settings for part in ("--set", setting)]
    return [
        "python",
        "-m",
        "ray_jobs.cli",
        "generate",
        "--config",
        "configs/miniworld.yaml",
        "--run",
        str(run),
        *options,
    ]


@pytest.mark.slow
def test_requests_without_the_token_are_refused(head):
    for token, refused in ((None, 401), ("wrong" * 8, 403)):
        with pytest.raises(urllib.error.HTTPError) as error:
            head.ask("/api/jobs/", token)
        assert error.value.code == refused
        error.value.close()


@pytest.mark.slow
def test_a_stopped_job_resumes_when_submitted_again(head, tmp_path):
    run = tmp_path / "run"
    pairs = run / "round-1" / "pairs"
    done = head.submit("first", "--no-wait", "--", *generate(run))
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: (pairs / shard_name(1)).exists(), "a second shard", lambda: head.logs("first"))
    assert head.ask("/api/jobs/first/stop", head.token, method="POST") == {"stopped": True}
    wait_for(lambda: head.status("first") != "RUNNING", "the end")
    assert head.status("first") == "STOPPED"
    assert "stopped; finished work is kept" in head.logs("first")
    assert Run.existing(str(run)).folder.read_json("run.json")["status"] == "stopped"
    assert not (run / "lease.json").exists()
    wait_for(lambda: set(head.stage_actors()) == {"DEAD"}, "the end of all actors")
    kept = {shard.name: shard.stat().st_mtime_ns for shard in pairs.glob("shard-*")}
    assert 2 <= len(kept) < IMAGES / SHARD, "stopped too late to show anything"

    again = head.submit("second", "--", *generate(run))
    assert again.returncode == 0, again.stdout + again.stderr
    told = head.logs("second")
    assert told.strip() in again.stdout, "the log is followed"
    ours = told[told.index("Running entrypoint") :]
    assert not re.search(r"[^\n -~]", ours), f"not only plain lines: {ours!r}"
    assert f"pairs: {len(kept) * SHARD}/{IMAGES}  starting replicas" in told
    assert re.search(rf"pairs +{IMAGES} rows", told)
    assert "jsfree score --round 1" in told
    assert {name: (pairs / name).stat().st_mtime_ns for name in kept} == kept
    rows = Run.existing(str(run)).stage(1, "pairs").read_shards(schemas.PAIRS)["sample_id"].to_pylist()
    assert len(rows) == len(set(rows)) == IMAGES


@pytest.mark.slow
def test_workers_with_different_libraries_are_refused(head, tmp_path):
    """The workers' environment differs from the driver's, as on a node with an old image."""
    metadata = tmp_path / "old" / "open_clip_torch-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 0.0.1\n")
    workers = json.dumps({"env_vars": {"PYTHONPATH": str(tmp_path / "old")}})
    driver = ["env", "--unset=PYTHONPATH", *generate(tmp_path / "run")]
    done = head.submit("mixed", "--runtime-env-json", workers, "--", *driver)
    assert done.returncode == 1, done.stdout
    errors = [line for line in head.logs("mixed").splitlines() if "error" in line.lower()]
    assert len(errors) == 1, head.logs("mixed")
    assert "has other code than the driver: open_clip_torch 0.0.1 instead of 3." in errors[0]
    assert "uv sync --frozen" in errors[0]
    assert f"node {socket.gethostname()}" in errors[0]
    assert not list((tmp_path / "run" / "round-1" / "pairs").glob("shard-*"))


def test_the_upload_is_small_and_complete(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True, excludes=[])
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = set(package.namelist())
        sizes = {each.filename: each.compress_size for each in package.infolist()}
    second_family = "jsfree/miniworld/weights/qwen-captioner/"  # tests/pretraining/test_qwen.py limits its size
    assert sum(size for name, size in sizes.items() if not name.startswith(second_family)) < 25 * 2**20
    assert sum(size for name, size in sizes.items() if "/weights/" not in name) < 3 * 2**20
    packages = [path for name in ("jsfree", "ray_jobs", "serve") for path in (ROOT / name).rglob("*")]
    files = {path.relative_to(ROOT).as_posix() for path in [*packages, *(ROOT / "configs").glob("*")] if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert {name.split("/")[0] for name in names} == {
        *("configs", "jsfree", "ray_jobs", "serve", "pyproject.toml", "uv.lock")
    }
    assert not [name for name in names if name.endswith(".pyc")]

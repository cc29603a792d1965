"""The lease of a run between separate processes, on a disk and on a store without locks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jsfree.errors import LeaseError, StorageError
from jsfree.run.folder import Folder
from jsfree.run.lease import LEASE, LOCK, Holder, Lease, Timing

QUICK = Timing(renew=0.2, stale=1.5, settle=1.0)
# A driver that takes the lease, prints "held", waits for a line of input and prints the outcome.
DRIVER = """
import signal, sys, time
from jsfree.errors import JsfreeError
from jsfree.run.lease import Lease, Timing
from jsfree.run.folder import Folder

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
try:
    with Lease(Folder(sys.argv[1]), Timing(renew=0.2, stale=1.5, settle=1.0)):
        print("held", flush=True)
        sys.stdin.readline()
        if sys.argv[2:] == ["fail"]:
            raise RuntimeError("the stage failed")
    print("ended", flush=True)
except JsfreeError as error:
    print(error, flush=True)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts drivers, and kills those still running when the test ends."""
    running: list[subprocess.Popen[str]] = []

    def driver(uri: str, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, uri, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield driver
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line_of(process: "subprocess.Popen[str]") -> str:
    return process.stdout.readline().strip()


@pytest.fixture(params=["disk", "store"])
def uri(request, tmp_path) -> str:
    """A folder shared between processes: with file locks, and through an fsspec filesystem without locks."""
    path = f"{tmp_path}/run"
    (tmp_path / "run").mkdir()
    return path if request.param == "disk" else f"dir://run::file://{tmp_path}"


def lease_of(tmp_path: Path) -> dict:
    """Reads the lease; retries an empty file, because the simulated store does not write atomically."""
    path = tmp_path / "run" / LEASE
    for _ in range(100):
        if text := path.read_text():
            break
        time.sleep(0.01)
    return json.loads(text)


def written_by_another(tmp_path: Path, **changes) -> Holder:
    """Writes a lease held by a driver on another machine."""
    holder = replace(Holder.this_process(QUICK), host="node-7", pid=4711, machine="another boot", user="ada", **changes)
    Folder(f"{tmp_path}/run").write_json(LEASE, asdict(holder))
    return holder


def test_a_second_driver_is_refused_with_the_holder_in_the_error(uri, tmp_path, start):
    first = start(uri)
    assert line_of(first) == "held"
    second = line_of(start(uri))
    held = lease_of(tmp_path)
    assert f"is in use by {held['user']} on {held['host']} (process {first.pid}) since {held['since']}" in second
    assert "last renewal " in second
    assert "choose another folder with --run" in second
    first.stdin.write("\n")
    first.stdin.flush()
    assert line_of(first) == "ended"
    assert not (tmp_path / "run" / LEASE).exists()
    assert line_of(start(uri)) == "held"


def test_exactly_one_of_several_concurrent_drivers_gets_the_lease(uri, start):
    drivers = [start(uri) for _ in range(4)]
    said = [line_of(driver) for driver in drivers]
    assert said.count("held") == 1, said
    assert sum("is in use by" in line for line in said) == 3, said


def test_the_lease_of_a_killed_local_driver_is_taken_over_immediately(tmp_path, start):
    first = start(f"{tmp_path}/run")
    assert line_of(first) == "held"
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # the process remains a zombie
    began = time.monotonic()
    with Lease(Folder(f"{tmp_path}/run"), replace(QUICK, stale=60)):
        assert time.monotonic() - began < QUICK.renew
        assert lease_of(tmp_path)["pid"] == os.getpid()


def test_a_lease_whose_process_id_was_reused_is_taken_over(tmp_path):
    mine = Holder.this_process(QUICK)
    Folder(f"{tmp_path}/run").write_json(LEASE, asdict(replace(mine, started="1")))
    with Lease(Folder(f"{tmp_path}/run"), QUICK):
        assert lease_of(tmp_path)["token"] != mine.token


@pytest.mark.parametrize("end", ["fail", signal.SIGTERM, signal.SIGINT])
def test_the_lease_is_released_when_a_driver_fails_or_is_interrupted(tmp_path, start, end):
    driver = start(f"{tmp_path}/run", *(["fail"] if end == "fail" else []))
    assert line_of(driver) == "held"
    if end == "fail":
        driver.stdin.write("\n")
        driver.stdin.flush()
    else:
        driver.send_signal(end)
    driver.wait(60)
    assert driver.returncode not in (0, -signal.SIGTERM)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_the_lease_is_renewed_while_its_holder_runs(uri, tmp_path, start):
    assert line_of(start(uri)) == "held"
    before = lease_of(tmp_path)
    time.sleep(QUICK.stale + 2 * QUICK.renew)
    after = lease_of(tmp_path)
    assert {**after, "renewed": ""} == {**before, "renewed": ""}
    assert after["renewed"] > before["renewed"]
    assert "is in use by" in line_of(start(uri))


def test_a_lease_of_another_machine_is_taken_over_only_when_stale(uri, tmp_path):
    written_by_another(tmp_path)
    with pytest.raises(
        LeaseError, match=r"ada on node-7 \(process 4711\).* the lease expires 1\.5 s after its last renewal"
    ):
        Lease(Folder(uri), QUICK).__enter__()
    old = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    written_by_another(tmp_path, renewed=old)
    with Lease(Folder(uri), QUICK):
        assert lease_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_holder_with_a_wrong_clock_keeps_its_lease(tmp_path, hours):
    def at() -> str:
        return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()

    holder = written_by_another(tmp_path, renewed=at())
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            Folder(f"{tmp_path}/run").write_json(LEASE, asdict(replace(holder, renewed=at())))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseError, match="ada on node-7"):
            Lease(Folder(f"{tmp_path}/run"), QUICK).__enter__()
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("how", ["taken over by ada on node-7", "removed"])
def test_a_driver_that_lost_its_lease_stops_and_keeps_the_new_lease(uri, tmp_path, start, how):
    driver = start(uri)
    assert line_of(driver) == "held"
    if how == "removed":
        (tmp_path / "run" / LEASE).unlink()
    else:
        other = written_by_another(tmp_path)
    told = line_of(driver)  # its input is still open, so it was interrupted
    assert f"its lease was {how}" in told
    assert "finished shards are kept" in told
    if how != "removed":
        assert lease_of(tmp_path)["token"] == other.token


def test_a_driver_stops_before_a_lease_it_cannot_renew_expires(tmp_path, monkeypatch):
    folder = Folder(f"{tmp_path}/run")
    with pytest.raises(LeaseError, match=r"could not be renewed for 1\.5 s .*No space left"):  # noqa: SIM117, PT012
        with Lease(folder, QUICK):

            def full(*_):
                raise StorageError("No space left")

            monkeypatch.setattr(folder, "write", full)
            time.sleep(10)


def test_a_lease_of_another_version_is_refused(tmp_path):
    Folder(f"{tmp_path}/run").write_json(LEASE, {"holder": "someone"})
    with pytest.raises(StorageError, match=r"lease\.json is not a lease of this version; delete it"):
        Lease(Folder(f"{tmp_path}/run"), QUICK).__enter__()

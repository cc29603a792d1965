"""``run.json``: the state of a run, the state and cost of each stage, and what the run was made with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import jsfree
from jsfree.errors import StorageError
from jsfree.run import environment
from jsfree.run.environment import Machine
from jsfree.run.folder import Folder
from jsfree.run.lease import Lease
from jsfree.run.run import INPUTS, Manifest, Run

RECORD = "run.json"


@contextmanager
def recorded(run: Run, lease: Lease) -> Iterator[None]:
    """Record that the run is running, and at the end of the block how it ended, unless the lease was lost."""
    known = read_record(run)
    _write(
        run,
        {
            "created": known.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
            "status": "running",
            "jsfree": jsfree.__version__,
            "code": environment.code(),
            "versions": environment.versions(),
            "hardware": environment.hardware(),
            "driver": environment.machine(),
            "nodes": known.get("nodes", {}),
            "command": environment.command(sys.argv),
            "directory": os.getcwd(),
            "fingerprint": run.config.own_fingerprint,
            "rounds_done": known.get("rounds_done", 0),
            "rounds_stop": known.get("rounds_stop"),
            "stages": stage_states(run),
        },
    )
    try:
        yield
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "stopped"
        if not lease.lost:
            with suppress(StorageError):
                update_record(run, status=status, error=str(error).partition("\n")[0])
        raise
    update_record(run, status="done", error=None)


def read_record(run: Run) -> dict[str, Any]:
    """The content of ``run.json``; empty if there is none yet."""
    record: dict[str, Any] = run.folder.read_json(RECORD) if run.folder.exists(RECORD) else {}
    return record


def update_record(run: Run, **entries: Any) -> None:
    """Change entries of ``run.json``; None removes one."""
    _write(run, {**read_record(run), **entries})


def record_stage(run: Run, number: int, name: str, state: Manifest | str, nodes: Mapping[str, Machine]) -> None:
    """Record the status of a stage, or its manifest, and the nodes of the cluster."""
    record = read_record(run)
    record.setdefault("stages", {}).setdefault(f"round-{number}", {})[name] = _entry(state)
    record["nodes"] = {**record.get("nodes", {}), **nodes}
    _write(run, record)


def record_progress(run: Run, running: Sequence[tuple[int, str]], figures: Mapping[str, Any]) -> None:
    """Record the progress of stages that run in the same pass.

    Args:
        running: round and name of each stage.
        figures: fields of ``ray_jobs.shards.progress.Figures``.
    """
    record = read_record(run)
    for number, name in running:
        record["stages"][f"round-{number}"][name] = {"status": "running", "progress": dict(figures)}
    _write(run, record)


def stage_states(run: Run) -> dict[str, dict[str, Any]]:
    """State and cost of every stage that was begun, from the manifests, by round and stage."""
    return {
        f"round-{number}": {
            name: _entry(run.manifest(number, name) or "unfinished") for name in _begun_stages(run.round(number))
        }
        for number in run.rounds()
    }


def _begun_stages(folder: Folder) -> list[str]:
    """Names of the stages in a round's folder, at its top (``pairs``) or one level below (``captions/m0-greedy``)."""
    names = []
    for name in folder.folders():
        if (folder / name).exists(INPUTS):
            names.append(name)
        else:
            inner = (folder / name).folders()
            names += [f"{name}/{each}" for each in inner if (folder / name / each).exists(INPUTS)]
    return names


def _entry(state: Manifest | str) -> dict[str, Any]:
    if isinstance(state, str):
        return {"status": state}
    costs = asdict(state)
    del costs["facts"]
    if not state.reused_from:
        del costs["reused_from"]
    if state.seconds:
        costs |= {"rows_per_second": state.rows_in / state.seconds, "tokens_per_second": state.tokens / state.seconds}
    return {"status": "done", **costs}


def _write(run: Run, entries: Mapping[str, Any]) -> None:
    run.folder.write_json(RECORD, {key: value for key, value in entries.items() if value is not None})

"""What ``run.json`` says of a run: code, libraries, machines, and the state and cost of every stage."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsfree
from jsfree.errors import StorageError
from jsfree.run import code_version
from jsfree.run.lease import Lease
from jsfree.run.storage import ABOUT, INPUTS, Folder, Manifest, Run
from ray_jobs.shards.progress import Figures

VERSIONS = ("ray", "torch", "transformers", "open_clip_torch", "deepspeed", "pyarrow", "numpy", "safetensors")
GPU_FIELDS = "name,memory.total,driver_version"
Machine = dict[str, Any]


@contextmanager
def described(run: Run, lease: Lease) -> Iterator[None]:
    """Have ``run.json`` say what runs and how it ended; nothing is written once the lease is lost."""
    known = about(run)
    _write(
        run,
        {
            "created": known.get("created", _now()),
            "status": "running",
            "jsfree": jsfree.__version__,
            "code": code(),
            "versions": versions(),
            "hardware": hardware(),
            "driver": machine(),
            "nodes": known.get("nodes", {}),
            "command": command(sys.argv),
            "directory": os.getcwd(),
            "fingerprint": run.config.own_fingerprint,
            "rounds_done": known.get("rounds_done", 0),
            "stages": stages(run),
        },
    )
    try:
        yield
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "stopped"
        if not lease.lost:
            with suppress(StorageError):
                note(run, status=status, error=str(error).partition("\n")[0])
        raise
    note(run, status="done", error=None)


def about(run: Run) -> dict[str, Any]:
    """The content of ``run.json``; empty when there is none yet."""
    known: dict[str, Any] = run.folder.read_json(ABOUT) if run.folder.exists(ABOUT) else {}
    return known


def note(run: Run, **facts: Any) -> None:
    """Change entries of ``run.json``; None removes one."""
    _write(run, {**about(run), **facts})


def note_stage(run: Run, number: int, name: str, state: Manifest | str, nodes: dict[str, Machine]) -> None:
    """Enter a stage's state, or with its manifest what it cost, and the nodes seen so far."""
    known = about(run)
    of_round = known.setdefault("stages", {}).setdefault(f"round-{number}", {})
    of_round[name] = _entry(state)
    known["nodes"] = {**known.get("nodes", {}), **nodes}
    _write(run, known)


def note_progress(run: Run, running: Sequence[tuple[int, str]], figures: Figures) -> None:
    """Enter how far stages are that share a pass."""
    known = about(run)
    for number, name in running:
        known["stages"][f"round-{number}"][name] = {"status": "running", "progress": asdict(figures)}
    _write(run, known)


def stages(run: Run) -> dict[str, dict[str, Any]]:
    """State and cost of every stage that a run has begun, from the manifests."""
    found: dict[str, dict[str, Any]] = {}
    for number in run.rounds():
        names = _stage_names(run.round(number))
        found[f"round-{number}"] = {name: _entry(run.manifest(number, name) or "unfinished") for name in names}
    return found


def _stage_names(folder: Folder) -> list[str]:
    """Stages of a round; some are in a folder of their own kind (``captions/m0-greedy``)."""
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
    told = asdict(state)
    del told["facts"]
    if state.seconds:
        told |= {"rows_per_second": state.rows_in / state.seconds, "tokens_per_second": state.tokens / state.seconds}
    return {"status": "done", **told}


def _write(run: Run, facts: dict[str, Any]) -> None:
    run.folder.write_json(ABOUT, {key: value for key, value in facts.items() if value is not None})


def code() -> dict[str, Any]:
    """Version, hash of all files, and in a checkout of git the commit; ``changed``: files differ from it."""
    known = {"version": jsfree.__version__, "fingerprint": code_version.here().fingerprint}
    root = Path(jsfree.__file__).parents[1]
    here = "jsfree/__init__.py"
    if _output(["git", "-C", str(root), "ls-files", here]) != here:  # no git, or the checkout of something else
        return known
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return {
        **known,
        "commit": _output(["git", "-C", str(root), "rev-parse", "HEAD"]),
        "changed": bool(changed),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that results depend on, and of CUDA."""
    import torch

    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}, **cuda}


def hardware() -> str:
    """The driver's machine, in words."""
    import torch

    gpus = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}){gpus}"


def machine() -> Machine:
    """The machine that this runs on: name, CPUs, memory, GPUs and their driver."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: Machine = {"host": socket.gethostname(), "cpus": os.cpu_count(), "memory_gib": _gib(memory)}
    listed = _output(["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"])
    gpus = [[field.strip() for field in line.split(",")] for line in (listed or "").splitlines()]
    if gpus and all(len(fields) == GPU_FIELDS.count(",") + 1 for fields in gpus):
        facts["gpus"] = [f"{name}, {memory} MiB" for name, memory, _ in gpus]
        facts["nvidia_driver"] = gpus[0][2]
    return facts


def see_nodes(known: dict[str, Machine]) -> None:
    """Add the nodes of the Ray session, if there is one, that are not known yet; those with GPUs are asked."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return
    fresh = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in known]
    ask = ray.remote(num_cpus=0, max_retries=0)(machine)
    asked = {
        node["NodeID"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in fresh
        if node["Resources"].get("GPU")
    }
    for node in fresh:
        total = node["Resources"]
        known[node["NodeID"]] = {
            "host": node["NodeManagerHostname"],
            "resources": {kind: total[kind] for kind in ("CPU", "GPU") if kind in total},
            "memory_gib": _gib(total.get("memory", 0)),
            "accelerators": [name.split(":", 1)[1] for name in total if name.startswith("accelerator_type:")],
        }
    for node, answer in asked.items():
        with suppress(ray.exceptions.RayError):  # the node left before it answered
            known[node] |= ray.get(answer)


def command(argv: Sequence[str]) -> str:
    """The command line as a person would type it."""
    return shlex.join(["jsfree" if Path(argv[0]).stem in ("jsfree", "cli") else Path(argv[0]).name, *argv[1:]])


def _output(arguments: Sequence[str]) -> str | None:
    """What a program prints; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gib(size: float) -> float:
    return round(size / 2**30, 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

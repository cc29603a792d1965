"""What is carried to a worker is done there only if the worker has the driver's code, however old its own is."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jsfree.config import RunConfig
from jsfree.errors import CodeError
from jsfree.run import code_version
from ray_jobs.cluster.same_code import carried, carried_actor
from ray_jobs.cluster.session import _ours
from tests.support import ROOT

LOAD = "import sys, ray.cloudpickle; print(ray.cloudpickle.loads(sys.stdin.buffer.read())())"


def called_in(folder: Path, work) -> subprocess.CompletedProcess[bytes]:
    """Unpickle and call ``work`` in a process that imports the code in ``folder``."""
    import ray.cloudpickle

    packed = ray.cloudpickle.dumps(work)
    return subprocess.run([sys.executable, "-c", LOAD], input=packed, capture_output=True, cwd=folder, timeout=120)


@pytest.mark.slow
def test_work_is_done_where_the_code_is_the_same_and_refused_where_it_is_not(tmp_path):
    work = carried(partial(RunConfig, seed=5))
    same = called_in(ROOT, work)
    assert b"seed=5" in same.stdout, same.stderr

    (tmp_path / "jsfree").mkdir()
    for name in ("__init__", "errors", "code_version"):
        shutil.copy(ROOT / "jsfree" / f"{name}.py", tmp_path / "jsfree")
    other = called_in(tmp_path, work).stderr.decode()
    assert "has other code than the driver" in other
    assert f"imported from {tmp_path} (the driver's are in {ROOT})" in other

    (tmp_path / "jsfree" / "code_version.py").unlink()
    old = called_in(tmp_path, work).stderr.decode()
    told = _ours(RuntimeError(old))
    assert isinstance(told, CodeError), old
    assert "cannot import name 'code_version'" in str(told)


def test_an_actor_that_may_not_work_says_so_when_it_is_first_asked(monkeypatch):
    fine = carried_actor(partial(partial, max, 3))()
    assert fine(5) == 5

    monkeypatch.setattr(code_version, "installed", lambda name: "0.0.1")
    other = carried_actor(partial(partial, max, 3))
    monkeypatch.undo()
    refused = other()
    with pytest.raises(CodeError, match=r"has other code than the driver: .*torch .* instead of 0\.0\.1"):
        refused(5)

"""A worker runs the driver's tasks only if its code equals the driver's. Older code of any version is detected."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jsfree.config import RunConfig
from jsfree.errors import CodeError
from jsfree.run import code_version
from ray_jobs.cluster.same_code import checked_actor, checked_function
from tests.support import ROOT

CALL = """
import pickle, sys, ray.cloudpickle
try:
    print(ray.cloudpickle.loads(sys.stdin.buffer.read())())
except Exception as error:
    print(type(error).__name__, error)
"""


def called_in(folder: Path, function) -> str:
    """The result or the error of ``function`` in a process that imports the code in ``folder``."""
    import ray.cloudpickle

    pickled = ray.cloudpickle.dumps(function)
    done = subprocess.run([sys.executable, "-c", CALL], input=pickled, capture_output=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def files_that_comparing_imports() -> list[Path]:
    """This project's source files that ``jsfree.run.code_version`` imports, itself included."""
    code = (
        "import sys, jsfree.run.code_version;"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'jsfree'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=120, check=True)
    return [Path(line) for line in done.stdout.decode().splitlines()]


@pytest.mark.slow
def test_a_function_runs_with_the_same_code_and_is_refused_with_different_code(tmp_path):
    function = checked_function(partial(RunConfig, seed=5))
    assert "seed=5" in called_in(ROOT, function)

    for source in files_that_comparing_imports():
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    other = called_in(tmp_path, function)
    assert other.startswith("CodeError node ")
    assert "has other code than the driver" in other
    assert f"imported from {tmp_path} (the driver's are in {ROOT})" in other

    (tmp_path / "jsfree" / "run" / "code_version.py").unlink()
    old = called_in(tmp_path, function)
    assert old.startswith("ImportError node ")
    assert "has other code than the driver: cannot import name 'code_version'" in old


def test_an_actor_with_different_libraries_is_refused_at_its_first_call(monkeypatch):
    fine = checked_actor(partial(partial, max, 3), "generate")()
    assert fine(5) == 5

    monkeypatch.setattr(code_version, "installed", lambda name: "0.0.1")
    other = checked_actor(partial(partial, max, 3), "generate")
    monkeypatch.undo()
    refused = other()
    with pytest.raises(CodeError, match=r"has other code than the driver: .*torch .* instead of 0\.0\.1"):
        refused(5)

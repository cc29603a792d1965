"""The GPU check run on a CPU, its runner with failing steps, and its kit of wheels."""

import json
import math
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from gpu import kit

from tests.support import ROOT


@pytest.fixture(scope="module")
def outcomes():
    script = Path(__file__).with_name("faulty_steps.py")
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", script.parent)))}
    command = [sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **paths})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def numbers(value):
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu_with_tiny_shapes(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / "check.py", "--tiny", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1300)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, path = done.stdout.splitlines()
    result = json.loads(Path(path).read_text())
    assert Path(path).name == f"gpu_{result['date']}_{result['hardware']}.json"
    assert len(lines) == len(result["steps"]) == 13
    for name, step in result["steps"].items():
        assert step["status"] == "done" or (step["status"] == "skipped" and step["reason"]), (name, step)
        assert all(check["passed"] for check in step.get("checks", {}).values()), (name, step)
        assert all(math.isfinite(number) and number > 0 for number in numbers(step.get("figures", {}))), (name, step)
    assert all(math.isfinite(each) and each > 0 for line in result["predictions"].values() for each in numbers(line))
    exact = [len(result["steps"][name]["checks"]) for name in ("exact-decoding", "exact-scoring", "exact-dpo")]
    assert exact == [7, 1, 6]
    keys = {"dual_over_single_cost", "transformers_generate_single_path", "transformers_cfg_batched"}
    assert result["ratios"].keys() == keys


def test_a_step_that_hangs_or_crashes_keeps_its_earlier_figures(outcomes):
    hung, crashed = outcomes["hangs"], outcomes["crashes"]
    assert (hung["status"], hung["reason"]) == ("timeout", "cut off after 2 s")
    assert hung["figures"] == crashed["figures"] == {"before": 1.0}
    assert "in hangs" in hung["log"]  # the stack when it was cut off
    assert crashed["status"] == "failed"
    assert crashed["reason"] == "the process ended with exit code -6"


def test_an_exception_fails_a_step_and_a_missing_library_skips_it(outcomes):
    assert outcomes["raises"]["status"] == "failed"
    assert outcomes["raises"]["reason"] == "ValueError: the step is broken"
    assert outcomes["lacks"]["status"] == "skipped"
    assert "No module named 'a_library_that_nobody_has'" in outcomes["lacks"]["reason"]


def test_later_parts_of_a_step_run_after_one_fails(outcomes):
    found = outcomes["in_parts"]
    assert (found["status"], found["reason"]) == ("failed", "1 failed: broken")
    assert found["failures"] == {"broken": "ValueError: this part is broken"}
    assert list(found["skipped"]) == ["lacking"]
    assert found["figures"] == {"after": 1.0}


def test_a_failed_check_fails_its_step(outcomes):
    assert outcomes["unequal"]["reason"] == "2 failed: too large; not a number"


@pytest.mark.parametrize("name", ["fine", "fine, spawned"])
def test_a_step_runs_in_a_forked_process_or_in_a_spawned_one_if_cuda_is_initialised(outcomes, name):
    found = outcomes[name]
    assert found["status"] == "done"
    assert found["checks"]["small"] == {"passed": True, "value": 0.5, "limit": 1}
    assert found["predictions"]["size"] == {"predicted": 3.0, "measured": 2.0, "ratio": 1.5, "unit": "metres"}


def wheel(folder: Path, name: str, number: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}_from_the_kit.py", "")


def test_the_kit_installs_only_missing_or_outdated_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    wheel(tmp_path, "nobody_has_this", "1.0")
    wheel(tmp_path, "numpy", version("numpy"))
    wheel(tmp_path, "pyarrow", "1.0")
    wheel(tmp_path, "pillow", "1000.0.1")
    assert kit.install(tmp_path) == ["nobody_has_this==1.0", "pillow==1000.0.1"]
    offered = {path.name for path in Path(sys.path[0]).iterdir()}
    assert offered == {"nobody_has_this_from_the_kit.py", "pillow_from_the_kit.py"}


def test_a_missing_kit_installs_nothing(tmp_path):
    before = [*sys.path]
    assert kit.install(tmp_path / "absent") == []
    assert sys.path == before

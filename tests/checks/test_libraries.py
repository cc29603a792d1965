"""Versions, drivers and arithmetic that do not fit."""

import torch
from packaging.requirements import Requirement

from jsfree import config as configuration
from jsfree.checks import libraries
from jsfree.checks.findings import Verdict
from jsfree.sizing.rates import GPUS


def test_a_library_that_is_missing_or_of_another_version_is_named():
    missing, other = libraries._unfit([Requirement("no-such-library>=1"), Requirement("torch<1")])
    assert (missing.name, missing.found) == ("no-such-library", "is not installed")
    assert other.name == "torch"
    assert other.found.endswith("<1 is needed")
    assert list(libraries._unfit([Requirement("torch>=2")])) == []


def test_a_node_with_an_old_driver_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = libraries.check_drivers([("new", "580.65.06"), ("old", "550.54")])
    assert finding.verdict is Verdict.NOTE
    assert "old: 550.54" in finding.found
    assert "new:" not in finding.found
    (fine,) = libraries.check_drivers([("new", "580.65.06")])
    assert fine.verdict is Verdict.OK


def test_a_gpu_without_bfloat16_is_refused():
    half = configuration.build({"captioner": {"dtype": "bfloat16"}}, where="test")
    (finding,) = libraries.check_arithmetic(half, "Tesla T4", GPUS["t4"])
    assert finding.verdict is Verdict.FAILS
    assert list(libraries.check_arithmetic(half, "A100", GPUS["a100-80g"])) == []

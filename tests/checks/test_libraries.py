"""Checks of library versions and GPU drivers."""

import torch
from packaging.requirements import Requirement

from jsfree.checks import libraries
from jsfree.checks.findings import Verdict


def test_a_missing_library_and_an_unsuitable_version_are_reported():
    missing, other = libraries._mismatches([Requirement("no-such-library>=1"), Requirement("torch<1")])
    assert (missing.name, missing.found) == ("no-such-library", "is not installed")
    assert other.name == "torch"
    assert other.found.endswith("<1 is needed")
    assert list(libraries._mismatches([Requirement("torch>=2")])) == []


def test_an_outdated_driver_is_reported(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = libraries.check_drivers([("new", "580.65.06"), ("old", "550.54")])
    assert finding.verdict is Verdict.NOTE
    assert "old: 550.54" in finding.found
    assert "new:" not in finding.found
    (fine,) = libraries.check_drivers([("new", "580.65.06")])
    assert fine.verdict is Verdict.OK

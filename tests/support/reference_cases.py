"""Reference cases of the hallucination benchmarks, which are kept outside the repository."""

from pathlib import Path

import pytest

from tests.support import ROOT

REFERENCE = ROOT.parent / "shared" / "data"


def reference(name: str) -> Path:
    """A folder of reference cases; skips the test where it is absent."""
    path = REFERENCE / name
    if not path.is_dir():
        pytest.skip(f"the reference cases are not here: {path}")
    return path

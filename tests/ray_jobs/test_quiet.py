"""Libraries print nothing on a user's terminal."""

import subprocess
import sys

import pytest

IMPORT = """
from ray_jobs.quiet import silence_libraries

silence_libraries()
import warnings
import deepspeed, transformers
from transformers.utils import logging

warnings.warn("a library's warning")
logging.get_logger("transformers.x").warning("a library's warning")
"""


@pytest.mark.slow
def test_imports_and_warnings_of_libraries_print_nothing(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Shared by the tests: example runs, files and records, a local model hub, and requests to the server."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Root of the repository."""

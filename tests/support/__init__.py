"""What tests share: example runs, files and records, a hub on this machine, and a client of the server."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

"""Checks of everything that needs a GPU: ``python benchmarks/gpu/check.py`` (``docs/first-run.md``)."""

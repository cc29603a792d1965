"""Ablations: a YAML file of cells (settings that differ) that are run with several seeds, and their summary."""

"""Checks of a configuration before a run (preflight) and of a finished run (smoke).

Preflight checks settings, libraries, storage, models, images, memory and time without a GPU, without loading weights
and without starting a cluster; ``ray_jobs/commands/preflight.py`` adds what a Ray cluster offers.
"""

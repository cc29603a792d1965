"""What will not work is found out before anything is spent: settings, libraries, storage, models, images, memory, time.

A check yields findings; one that fails names the cause and the remedy. Nothing here needs a GPU, loads a model's
weights or starts a cluster; what a Ray cluster has is looked at in ``ray_jobs/commands/preflight.py``.
"""

"""Predictions of what a run takes: memory, time and disk space, from the shapes of its models."""

"""Evaluation of captions: metrics without labels, metrics against MiniWorld's truth, and their intervals."""

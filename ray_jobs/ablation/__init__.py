"""Runs the cells of an ablation: the order of its runs, and drivers as processes on one cluster."""

"""The report of a run: one self-contained HTML page with the metrics, their evidence and the cost."""

"""The report of a run: one self-contained HTML page that says what changed, on what evidence, and at what cost."""

"""The field's benchmarks of hallucination: what they ask a captioner, and how they score its answers."""

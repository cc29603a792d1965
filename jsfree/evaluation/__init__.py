"""What a model is measured by: metrics without truth, and the statistics behind every interval."""

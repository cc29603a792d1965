"""Running a stage class over shards with Ray Data actors."""

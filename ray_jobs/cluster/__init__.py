"""The Ray session: capacity, code version, NCCL settings and jobs."""

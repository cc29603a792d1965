"""What training workers are told about NCCL."""

from ray_jobs.cluster.nccl import worker_environment


def test_workers_without_gpus_are_told_nothing():
    assert worker_environment(0, {"NCCL_DEBUG": "INFO"}) == {}


def test_failures_are_told_and_end_the_training():
    told = worker_environment(1, {"HOME": "/root", "PATH": "/bin"})
    assert told == {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}


def test_what_the_driver_sets_wins_and_reaches_the_workers():
    told = worker_environment(1, {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ens5", "FI_PROVIDER": "efa", "A": "b"})
    assert told == {
        "NCCL_DEBUG": "INFO",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "NCCL_SOCKET_IFNAME": "ens5",
        "FI_PROVIDER": "efa",
    }

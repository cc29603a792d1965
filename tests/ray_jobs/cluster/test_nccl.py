"""NCCL's environment variables of training workers."""

from ray_jobs.cluster.nccl import worker_environment


def test_workers_without_gpus_get_no_variables():
    assert worker_environment(0, {"NCCL_DEBUG": "INFO"}) == {}


def test_failures_are_logged_and_end_the_training():
    variables = worker_environment(1, {"HOME": "/root", "PATH": "/bin"})
    assert variables == {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}


def test_the_drivers_variables_override_the_defaults_and_are_passed_on():
    driver = {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ens5", "FI_PROVIDER": "efa", "A": "b"}
    assert worker_environment(1, driver) == {
        "NCCL_DEBUG": "INFO",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "NCCL_SOCKET_IFNAME": "ens5",
        "FI_PROVIDER": "efa",
    }

"""NCCL's environment variables for training workers, and the reasons for them.

They are set only if training uses GPUs. Variables of the driver's environment override them, and any other ``NCCL_*``,
``TORCH_NCCL_*`` or ``FI_*`` of the driver is passed on too: ``NCCL_DEBUG=INFO jsfree run ...`` reaches the workers.

- ``NCCL_DEBUG=WARN``: a failure is logged with the interface or the peer; by default NCCL logs nothing.
- ``TORCH_NCCL_ASYNC_ERROR_HANDLING=1``: if a worker is lost, or a collective takes longer than
  ``COLLECTIVE_SECONDS``, the other workers fail instead of waiting, so that Ray Train can restart all of them from the
  last checkpoint.

Not set on purpose: ``NCCL_SOCKET_IFNAME`` (NCCL skips loopback and Docker interfaces by itself; set it if nodes have
networks that cannot reach each other), ``NCCL_IB_DISABLE`` and ``NCCL_P2P_DISABLE`` (they hide faults and cost speed),
``NCCL_ALGO`` and ``NCCL_PROTO`` (NCCL tunes them). Workers on one node communicate over NVLink or PCIe. Between nodes
on AWS, EFA is used if the image has the aws-ofi-nccl plug-in: ``NCCL_DEBUG=INFO`` then logs ``NET/OFI``, and
``NET/Socket`` if it fell back to TCP.
"""

from __future__ import annotations

from collections.abc import Mapping

COLLECTIVE_SECONDS = 1800
"""Rank 0 writes the model while the others wait: enough for 26.7 GB at 15 MB/s."""
DEFAULTS = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
PASSED_ON = ("NCCL_", "TORCH_NCCL_", "FI_")


def worker_environment(gpus: float, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for workers with ``gpus`` GPUs each; ``environ`` is the driver's environment."""
    if not gpus:
        return {}
    return DEFAULTS | {name: value for name, value in environ.items() if name.startswith(PASSED_ON)}

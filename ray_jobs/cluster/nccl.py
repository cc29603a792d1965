"""The environment that training workers get for NCCL, and why.

Set only where GPUs train; a variable of the driver's own environment wins, so ``NCCL_DEBUG=INFO jsfree run ...``
reaches the workers, and so does any other ``NCCL_*``, ``TORCH_NCCL_*`` or ``FI_*`` that is set there.

- ``NCCL_DEBUG=WARN``: a failure names the interface or the peer. Otherwise NCCL says nothing.
- ``TORCH_NCCL_ASYNC_ERROR_HANDLING=1``: when a worker is lost, or a collective takes longer than
  ``COLLECTIVE_SECONDS``, the others fail instead of waiting, so that Ray Train can start all of them again from the
  last checkpoint.

Left alone on purpose: ``NCCL_SOCKET_IFNAME`` (NCCL leaves out loopback and Docker interfaces by itself; set it where
nodes have networks that do not reach each other), ``NCCL_IB_DISABLE`` and ``NCCL_P2P_DISABLE`` (they hide faults and
cost speed), ``NCCL_ALGO`` and ``NCCL_PROTO`` (tuned by NCCL). Workers on one node talk over NVLink or PCIe. Across
nodes on AWS, EFA is used when the image has the aws-ofi-nccl plug-in; ``NCCL_DEBUG=INFO`` then says ``NET/OFI``, and
``NET/Socket`` where it fell back to TCP.
"""

from __future__ import annotations

from collections.abc import Mapping

# Rank 0 writes the model while the others wait: 26.7 GB in half an hour is a disk of 15 MB/s.
COLLECTIVE_SECONDS = 1800
DEFAULTS = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
PASSED_ON = ("NCCL_", "TORCH_NCCL_", "FI_")


def worker_environment(gpus: float, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for workers that reserve ``gpus`` each, of a driver with ``environ``."""
    if not gpus:
        return {}
    return DEFAULTS | {name: value for name, value in environ.items() if name.startswith(PASSED_ON)}

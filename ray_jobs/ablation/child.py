"""Entry point of a driver process that ends when the process that started it ends.

    python -m ray_jobs.ablation.child PARENT_PID run --config FILE

The rest of the command line is that of ``jsfree``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2), on Linux: the signal to send to this process when its parent dies."""


def main() -> None:
    """Run the command line; SIGTERM arrives when the parent is killed."""
    parent = int(sys.argv.pop(1))
    sys.argv[0] = "jsfree"
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has died before the call above
        raise SystemExit(1)
    from ray_jobs import cli  # takes seconds

    cli.main()


if __name__ == "__main__":
    main()

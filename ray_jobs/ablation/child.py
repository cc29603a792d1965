"""Entry point of a driver process that is killed when the process that started it dies.

    python -m ray_jobs.ablation.child PARENT_PID run --config FILE

The rest of the command line is that of ``jsfree``. SIGTERM would not be enough: the local cluster dies with the same
process, and Ray waits a minute for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2), on Linux: the signal to send to this process when its parent dies."""


def main() -> None:
    """Run the command line; SIGKILL arrives when the parent dies."""
    parent = int(sys.argv.pop(1))
    sys.argv[0] = "jsfree"
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has died before the call above
        raise SystemExit(1)
    from ray_jobs import cli  # takes seconds

    cli.main()


if __name__ == "__main__":
    main()

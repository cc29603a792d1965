"""Checks everything that needs a GPU on this one, and measures its speed and the accuracy of preflight's predictions.

    python benchmarks/gpu/check.py                 (eight minutes; with the wheels of ``make gpu-kit`` where needed)
    python benchmarks/gpu/check.py --tiny          (tiny shapes on a CPU core: what the tests run)

Needs torch and transformers, but no Ray, DeepSpeed, network or model: weights are random, with LLaVA-1.5's shapes.
Steps run in the order of importance, each with a time limit and a line of output. The result is written after every
step, into ``benchmarks/results/gpu_<date>_<device>.json``. Exit code 1 if a step failed or was cut off.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Instead of this folder: the checkout, which need not be installed, and the modules that benchmarks share.
sys.path[0:1] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu import kit  # noqa: E402 - imports the standard library only

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() must not initialise CUDA before steps are forked
}


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU core")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result")
    parser.add_argument("--seconds", type=float, help="time for everything (default: 470, with --tiny 1200)")
    parser.add_argument("--only", action="append", metavar="STEP", help="this step; may be given several times")
    arguments = parser.parse_args()
    os.environ |= QUIET
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a step is not left behind
    taken = kit.install(ROOT / ".gpu-kit")
    from gpu.scale import GPU, TINY
    from gpu.steps import Check

    scale = TINY if arguments.tiny else GPU
    check = Check(scale, arguments.out, arguments.seconds or scale.seconds, taken)
    raise SystemExit(0 if check.run(arguments.only) else 1)


if __name__ == "__main__":
    main()

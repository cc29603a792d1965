"""Predicted against measured memory of generation and training, on CPUs, for three small captioners.

    python benchmarks/memory.py [--only CASE]

Each case runs in its own process: after a warm-up with a smaller model, which loads libraries, the model is created and
used for a few steps, and the peak of resident memory (Linux's VmHWM) is compared with the prediction of preflight. The
result is written to ``benchmarks/results/memory_<date>_<hardware>.json``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import MemoryGrowth, command_line, own_process, publish
from random_llava import RandomCaptioner, of_shape

from jsfree import config as configuration
from jsfree.config import RunConfig
from jsfree.sizing import memory
from jsfree.sizing.shapes import LlavaShape, TransformerShape

VISION = TransformerShape(hidden=192, layers=4, heads=4, intermediate=768)
SIZES = {
    "35M": TransformerShape(hidden=384, layers=6, heads=6, intermediate=1024),
    "60M": TransformerShape(hidden=512, layers=8, heads=8, intermediate=1376),
    "220M": TransformerShape(hidden=1024, layers=12, heads=16, intermediate=2816),
}
WARM = TransformerShape(hidden=64, layers=2, heads=2, intermediate=128)
PAIRS, CAPTION, STEPS = 4, 130, 3
TRAIN: dict[str, dict[str, Any]] = {
    "train, ZeRO-2": {},
    "train, ZeRO-3": {"zero_stage": 3},
    "train, ZeRO-2, checkpointed": {"gradient_checkpointing": True},
    "train, ZeRO-2, LoRA": {"lora": {"rank": 16, "alpha": 32}},
}
CASES = ["generate", *TRAIN]
WITHIN = 0.15


def main() -> None:
    """Measure, compare, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--child", nargs=2, metavar=("CASE", "SIZE"), help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(*arguments.child)))
        return
    loads, found = [os.getloadavg()[0]], {}
    for case in [arguments.only] if arguments.only else CASES:
        for size in SIZES:
            measured_bytes, predicted_bytes = _measured_apart(case, size), predicted(case, size)
            found[f"{case}, {size}"] = {
                "predicted_mb": predicted_bytes / 1e6,
                "measured_mb": measured_bytes / 1e6,
                "ratio": predicted_bytes / measured_bytes,
            }
            print(f"{case}, {size}: {found[f'{case}, {size}']}", file=sys.stderr)
    ratios = sorted(each["ratio"] for each in found.values())
    figures = {"cases": found, "apart_at_most": max(abs(each - 1) for each in ratios), "target": WITHIN}
    middle = {"median": ratios[len(ratios) // 2], "min": ratios[0], "max": ratios[-1], "target": 1.0}
    publish("memory", {"predicted_over_measured": middle}, figures, [*loads, os.getloadavg()[0]])
    if figures["apart_at_most"] > WITHIN:
        raise SystemExit(f"a prediction is {100 * figures['apart_at_most']:.0f} % off, more than {100 * WITHIN:.0f} %")


def shape_of(size: str) -> LlavaShape:
    """A LLaVA with a small vision tower of 144 visual tokens and LLaVA-1.5's vocabulary."""
    language = WARM if size == "warm" else SIZES[size]
    return LlavaShape(language, vision=VISION, image_size=96, patch_size=8)


def settings(case: str) -> RunConfig:
    """Settings of one worker with 16 slots."""
    train = {"pairs_per_step": PAIRS, "pairs_per_worker": PAIRS, "resources": {"replicas": 1}, **TRAIN.get(case, {})}
    decoding = {"max_new_tokens": CAPTION}
    return configuration.build(
        {"generate": {"slots": 16, "decoding": decoding, "resources": {"replicas": 1}}, "train": train},
        where="benchmark",
    )


def predicted(case: str, size: str) -> float:
    """Bytes as preflight predicts them."""
    run, shape = settings(case), shape_of(size)
    lengths = memory.Lengths(prefix=shape.image_tokens + 25, text_prefix=25, caption=CAPTION, maximum=CAPTION)
    if case == "generate":
        return memory.generation(shape, run, lengths, slots=run.generate.slots).total
    return memory.training(shape, run.train, "float32", lengths, on_cpu=True).total


def measured(case: str, size: str) -> float:
    """Peak bytes of a process beyond those of libraries."""
    torch.set_num_threads(1)
    work: Callable[[str], None] = _generate if case == "generate" else lambda size: _train(case, size)
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        if case != "generate":
            _join(Path(folder) / "store")
        work("warm")
        growth = MemoryGrowth()
        work(size)
        return growth.bytes()


def _join(store: Path) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def _generate(size: str) -> None:
    from jsfree.decoding.engine import DualPathEngine
    from jsfree.decoding.requests import Request
    from jsfree.decoding.workload import Workload

    run, captioner = settings("generate"), _captioner(size)
    engine = DualPathEngine(captioner, Workload(run.generate.slots, dual_path_share=0.5, prompts=1), kv_cache_gib=8)
    pixels = captioner.random_images(12)
    requests = [
        Request(f"{at}-{ratio}", each, "", ratio, 2 * at + bool(ratio), run.generate.decoding)
        for at, each in enumerate(pixels)
        for ratio in (0.0, 0.5)
    ]
    engine.decode(requests)


def _train(case: str, size: str) -> None:
    from dpo_pairs import random_batch

    from jsfree.dpo.engine import start_engine
    from jsfree.dpo.loss import Lengths, PairLogps, preference_loss

    captioner, run = _captioner(size), settings(case)
    engine = start_engine(captioner, run, 1)
    batch = random_batch(captioner, PAIRS, CAPTION)
    lengths = Lengths.of(batch.lengths)
    for _ in range(STEPS + 1):
        policy = PairLogps.of(engine(batch))
        reference = PairLogps(policy.chosen.detach(), policy.rejected.detach())
        engine.backward(preference_loss(policy, reference, lengths, beta=run.train.beta).loss.mean())
        engine.step()


def _captioner(size: str) -> RandomCaptioner:
    return of_shape(shape_of(size), torch.float32, "cpu")


def _measured_apart(case: str, size: str) -> float:
    # Freed memory returns to the system at once, so that only memory in use is counted.
    returned = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    return float(own_process(__file__, ["--child", case, size], returned))


if __name__ == "__main__":
    main()

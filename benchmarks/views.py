"""Time of decoding with several views of each image, relative to one view.

    python benchmarks/views.py [--rounds 5]

CPU time of one thread per token, all numbers of views in turn in one process: pairs (h = 0 and h = 0.5) and evaluation
captions of MiniWorld's captioner, and pairs of a tiny LLaVA with random weights and 144 image tokens. The result is
written to ``benchmarks/results/views_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from measuring import command_line, publish, ratio
from random_llava import tiny

from jsfree.config import Decoding, Views
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.miniworld import world
from jsfree.models.loading import Captioner, load_captioner

TARGETS = {3: 2.2, 5: 3.5}
PAIR = (0.0, 0.5)


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    cases = measured(options.rounds, options.images)
    loads.append(os.getloadavg()[0])
    worst = {
        f"{count}_views_cost": max((case["ratios"][count] for case in cases.values()), key=lambda each: each["median"])
        for count in TARGETS
    }
    publish("views", worst, cases, loads)


def measured(rounds: int, images: int) -> dict[str, dict[str, Any]]:
    """The ratios and times of each workload."""
    captioner, random = load_captioner("miniworld:captioner"), tiny(12)
    scenes = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(images)]
    noise = random.random_images(16)
    return {
        "miniworld, evaluation captions": case(captioner, scenes, (0.0,), 96, rounds),
        "miniworld, pairs": case(captioner, scenes, PAIR, 96, rounds),
        "144 image tokens, pairs": case(random, noise, PAIR, 32, rounds),
    }


def case(
    captioner: Captioner, images: Sequence[torch.Tensor], ratios: tuple[float, ...], tokens: int, rounds: int
) -> dict[str, Any]:
    """Microseconds of CPU time a token by number of views, and their ratios to one view."""
    counts = (1, *TARGETS)
    engines = {count: DualPathEngine(captioner, workload(len(ratios), count)) for count in counts}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds + 1):
        for count, engine in engines.items():
            asked = requests(images, ratios, Decoding(max_new_tokens=tokens, views=Views(count=count)))
            started = time.process_time()
            drawn = sum(len(caption.token_ids) for caption in engine.decode(asked))
            if number:
                seconds[count].append((time.process_time() - started) / drawn)
    return {
        "ratios": {count: ratio(seconds[count], seconds[1], target) for count, target in TARGETS.items()},
        "microseconds_a_token": {count: 1e6 * statistics.median(each) for count, each in seconds.items()},
    }


def workload(captions: int, views: int) -> Workload:
    """One caption an image in evaluation, or two in stage 1."""
    if captions == 1:
        return Workload.for_captions(64, views=views)
    return Workload(64, dual_path_share=0.5, prompts=1, views=views)


def requests(images: Sequence[torch.Tensor], ratios: tuple[float, ...], decoding: Decoding) -> list[Request]:
    """Requests for captions of images that no engine has seen."""
    return [
        Request(f"{index}/{role}", pixels, world.PROMPT, h, noise_key(0, 1, str(index), str(role)), decoding)
        for index, pixels in enumerate([each.clone() for each in images])
        for role, h in enumerate(ratios)
    ]


if __name__ == "__main__":
    main()

"""Speed of the dual-path engine for two captions an image, against other ways to decode.

    make bench                (or: python benchmarks/generation.py [--rounds 5])

CPU time of one thread, all variants in turn in one process, a tiny LLaVA with random weights at two image sizes;
the result is written to ``benchmarks/results/generation_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from generation_peers import RATIOS, Peers
from measuring import command_line, in_turn, publish, ratio
from random_llava import RandomCaptioner, tiny

from jsfree.config import Decoding
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.memory import kv_size
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload

CASES = {"144 image tokens": (12, 8, 32), "256 image tokens": (16, 6, 48)}  # patches a side, images, tokens
TARGETS = {
    "transformers_cfg_batched": 2.5,
    "transformers_cfg_per_image_h": 8.0,
    "vcd_batched": 1.8,
    "transformers_generate_single_path": 1.4,
    "dual_over_single_cost": 1.25,
}


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    ratios, figures = against_peers(rounds)
    figures["slot_utilisation"] = utilisation()
    loads.append(os.getloadavg()[0])
    publish("generation", ratios, figures, loads)


def against_peers(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The worst case of each ratio, and the figures of all cases."""
    cases = {name: case(*of, rounds) for name, of in CASES.items()}
    for name, figures in cases.items():
        for key, each in figures["ratios"].items():
            print(f"{name}: {key} {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})")
        for key, each in figures["ratios_compiled"].items():
            print(f"{name}, compiled: {key} {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})")
    worse = {
        key: (max if key.endswith("_cost") else min)(
            (figures["ratios"][key] for figures in cases.values()), key=lambda each: each["median"]
        )
        for key in TARGETS
    }
    return worse, cases


def case(patches: int, images: int, length: int, rounds: int) -> dict[str, Any]:
    """Measure all variants with one size of image."""
    captioner, peers = tiny(patches), Peers(tiny(patches), images, length)

    def engine(ratios: tuple[float, float], compiling: str = "none") -> Callable[[], object]:
        return lambda: engine_run(captioner, images, length, ratios, compiling)

    seconds = in_turn(
        {
            "transformers_cfg_batched": peers.guidance_batched,
            "transformers_cfg_per_image_h": peers.guidance_per_image,
            "vcd_batched": peers.two_forwards,
            "transformers_generate_single_path": peers.single_path,
            "engine": engine(RATIOS),
            "engine, h = 0 and 0.6": engine((0.0, 0.6)),
            "engine, single path": engine((0.0, 0.0)),
            "engine, inductor": engine(RATIOS, "inductor"),
        },
        rounds,
    )
    ours, compiled, known = seconds["engine"], seconds["engine, inductor"], TARGETS.keys() & seconds.keys()
    return {
        "ratios": {
            **{key: ratio(seconds[key], ours, TARGETS[key]) for key in TARGETS if key in known},
            "dual_over_single_cost": ratio(ours, seconds["engine, single path"], TARGETS["dual_over_single_cost"]),
        },
        "ratios_compiled": {key: ratio(seconds[key], compiled, TARGETS[key]) for key in TARGETS if key in known},
        "tokens_per_cpu_second": {
            key: images * len(RATIOS) * length / statistics.median(each) for key, each in seconds.items()
        },
        **kv_bytes(captioner, images, length),
    }


ENGINES: dict[tuple[Any, ...], DualPathEngine] = {}


def engine_run(
    captioner: RandomCaptioner, images: int, length: int, ratios: tuple[float, float], compiling: Any = "none"
) -> DualPathEngine:
    """Decode two captions of each image; the engine is reused, as in a worker."""
    key = (id(captioner), ratios, compiling)
    if key not in ENGINES:
        share = sum(ratio > 0 for ratio in ratios) / len(ratios)
        ENGINES[key] = DualPathEngine(
            captioner, Workload(images * len(ratios), dual_path_share=share, prompts=1), compiling=compiling
        )
    ENGINES[key].decode(requests(captioner, images, [length] * (2 * images), ratios))
    return ENGINES[key]


def requests(captioner: RandomCaptioner, images: int, lengths: list[int], ratios: tuple[float, float]) -> list[Request]:
    """Two requests an image."""
    pixels = captioner.random_images(images)
    return [
        Request(
            f"{index}/{role}",
            pixels[index],
            "",
            ratios[role],
            noise_key(0, 1, str(index), str(role)),
            Decoding(max_new_tokens=lengths[2 * index + role]),
        )
        for index in range(images)
        for role in range(2)
    ]


def kv_bytes(captioner: RandomCaptioner, images: int, length: int) -> dict[str, float]:
    """Bytes of keys and values per caption in flight: as laid out, and if no caption shared its prefixes."""
    engine = engine_run(captioner, images, length, RATIOS)
    assert engine.layout is not None
    tokens = engine.layout.requirement
    alone = (tokens.image_prefix + tokens.text_prefix + 2 * tokens.caption) * kv_size(captioner).token_bytes
    return {
        "kv_bytes_a_caption": engine.layout.bytes / engine.layout.slots,
        "kv_bytes_a_caption_without_sharing": alone,
        "prefix_entries_a_caption": engine.layout.images / engine.layout.slots,
    }


def utilisation() -> dict[str, float]:
    """Share of the slots that hold a caption, over 400 captions of lognormal length, including start and end."""
    captioner = tiny(4)
    lengths = np.random.default_rng(0).lognormal(np.log(24), 0.5, 400).clip(1, 96).astype(int).tolist()
    found = {}
    for name, ratios in {"h = 0 and 0.6": (0.0, 0.6), "h = 0.2 and 0.6": RATIOS}.items():
        engine = DualPathEngine(
            captioner, Workload(16, dual_path_share=sum(ratio > 0 for ratio in ratios) / 2, prompts=1)
        )
        for request in requests(captioner, 200, lengths, ratios):
            engine.submit(request)
        while engine.active:
            engine.step()
        found[name] = engine.utilisation
    print("utilisation", found)
    return found


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


if __name__ == "__main__":
    main()

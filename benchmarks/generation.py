"""How fast the dual-path engine makes two captions an image, against what people decode with today.

    make bench                (or: python benchmarks/generation.py [--rounds 5])

CPU time of one thread, all variants in turn in one process, a tiny LLaVA with random weights at two image sizes;
the result is written to ``benchmarks/results/generation_<date>_<hardware>.json`` and printed as the last line.

    python benchmarks/generation.py --preset llava-1.5-13b --random-weights [--compiling cuda_graphs]

measures tokens/s, memory for keys and values and the share of the roofline on the GPU at hand instead. It needs no
installation but torch and transformers with what LLaVA wants (torchvision, Pillow), and pydantic.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation_peers import RATIOS, Peers
from measuring import in_turn, publish, ratio
from random_llava import RandomCaptioner, published, tiny

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout need not be installed

from jsfree.config import Decoding
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.memory import GIB, keys_of
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key

CASES = {"144 image tokens": (12, 8, 32), "256 image tokens": (16, 6, 48)}  # patches a side, images, tokens
TARGETS = {
    "transformers_cfg_batched": 2.5,
    "transformers_cfg_per_image_h": 8.0,
    "vcd_batched": 1.8,
    "transformers_generate_single_path": 1.4,
    "dual_over_single_cost": 1.25,
}
BANDWIDTH = {
    "a100-sxm4-80gb": 2.04e12,
    "a100-80gb-pcie": 1.94e12,
    "a100-sxm4-40gb": 1.555e12,
    "h100-80gb-hbm3": 3.35e12,
    "h200": 4.8e12,
    "l40s": 0.864e12,
}
"""Bytes a second by the makers' data sheets."""


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", choices=["llava-1.5-7b", "llava-1.5-13b"])
    parser.add_argument("--random-weights", action="store_true", help="the preset's shape, without its weights")
    parser.add_argument("--slots", type=int, default=96)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--length", type=int, default=130)
    parser.add_argument("--compiling", choices=["none", "inductor", "cuda_graphs"], default="none")
    arguments = parser.parse_args()
    if arguments.preset:
        if not (arguments.random_weights and torch.cuda.is_available()):
            parser.error("--preset needs a GPU and --random-weights")
        on_gpu(arguments)
        return
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    ratios, figures = against_peers(arguments.rounds)
    figures["slot_utilisation"] = utilisation()
    loads.append(os.getloadavg()[0])
    publish("generation", ratios, figures, loads)


def against_peers(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each ratio the worse of the cases, and all of them among the figures."""
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
    """All variants on one size of image."""
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
    """Two captions of each image; an engine is made once, as a worker does."""
    key = (id(captioner), ratios, compiling)
    if key not in ENGINES:
        mixed = sum(ratio > 0 for ratio in ratios) / len(ratios)
        ENGINES[key] = DualPathEngine(captioner, images * len(ratios), mixed=mixed, prompts=1, compiling=compiling)
    ENGINES[key].decode(requests(captioner, images, [length] * (2 * images), ratios))
    return ENGINES[key]


def requests(captioner: RandomCaptioner, images: int, lengths: list[int], ratios: tuple[float, float]) -> list[Request]:
    """Two requests an image."""
    pixels = captioner.random_pixels(images)
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
    """Bytes of keys and values a caption in flight, laid out, and as they would be with a prefix of its own each."""
    engine = engine_run(captioner, images, length, RATIOS)
    assert engine.layout is not None
    need = engine.layout.need
    alone = (need.prefix + need.own + need.lead + need.own) * keys_of(captioner).token_bytes
    return {
        "kv_bytes_a_caption": engine.layout.bytes / engine.layout.slots,
        "kv_bytes_a_caption_without_sharing": alone,
        "prefix_entries_a_caption": engine.layout.images / engine.layout.slots,
    }


def utilisation() -> dict[str, float]:
    """Share of the slots' steps that make a token, on 400 captions of lognormal length, start and end included."""
    captioner = tiny(4)
    lengths = np.random.default_rng(0).lognormal(np.log(24), 0.5, 400).clip(1, 96).astype(int).tolist()
    found = {}
    for name, ratios in {"h = 0 and 0.6": (0.0, 0.6), "h = 0.2 and 0.6": RATIOS}.items():
        engine = DualPathEngine(captioner, 16, mixed=sum(ratio > 0 for ratio in ratios) / 2, prompts=1)
        for request in requests(captioner, 200, lengths, ratios):
            engine.submit(request)
        while engine.active:
            engine.step()
        found[name] = engine.utilisation
    print("utilisation", found)
    return found


def on_gpu(arguments: argparse.Namespace) -> None:
    """Tokens/s and the share of the roofline, on the GPU at hand."""
    bytes_a_second = bandwidth()
    captioner = published(arguments.preset, "cuda", torch.bfloat16)
    model = captioner.model
    read_a_step = bytes_of(model.model.language_model.layers) + bytes_of(model.lm_head)
    figures: dict[str, Any] = {"weights_gib": bytes_of(model) / GIB, "weights_read_a_step_gib": read_a_step / GIB}
    for name, ratios in {"dual path": RATIOS, "h = 0 and 0.6": (0.0, 0.6), "single path": (0.0, 0.0)}.items():
        torch.cuda.reset_peak_memory_stats()
        mixed = sum(ratio > 0 for ratio in ratios) / 2
        engine = DualPathEngine(captioner, arguments.slots, mixed=mixed, prompts=1, compiling=arguments.compiling)
        lengths = [arguments.length] * (2 * arguments.images)
        engine.decode(requests(captioner, 2, lengths[:4], ratios))  # kernels, memory, graphs
        engine.reset_counts()
        torch.cuda.synchronize()
        started = time.perf_counter()
        engine.decode(requests(captioner, arguments.images, lengths, ratios))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        figures[name] = gpu_figures(engine, captioner, seconds, read_a_step / bytes_a_second, bytes_a_second)
        print(name, figures[name])
        del engine
        torch.cuda.empty_cache()
    publish(f"generation-{arguments.preset}", {}, figures, [os.getloadavg()[0]])


def gpu_figures(
    engine: DualPathEngine, captioner: RandomCaptioner, seconds: float, weights_seconds: float, bytes_a_second: float
) -> dict[str, float]:
    """What a run took. The roofline is of the steps alone; the seconds hold the prefills too."""
    layout = engine.layout
    assert layout is not None
    # Entries are read by every step, of what rows hold of their own half on average.
    tokens_read = layout.cache.entries * layout.cache.prefix + layout.cache.rows * layout.cache.own / 2
    step_seconds = weights_seconds + tokens_read * keys_of(captioner).token_bytes / bytes_a_second
    return {
        "tokens_per_second": engine.tokens / seconds,
        "slots": layout.slots,
        "slot_utilisation": engine.utilisation,
        "kv_gib": layout.bytes / GIB,
        "kv_gib_a_caption": layout.bytes / GIB / layout.slots,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "share_of_roofline_with_prefill": engine.forwards * step_seconds / seconds,
    }


def bytes_of(module: torch.nn.Module) -> int:
    """Weights of a module."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


def bandwidth() -> float:
    """Bytes a second of the GPU's memory."""
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    known = [value for key, value in BANDWIDTH.items() if key in name]
    if not known:
        raise SystemExit(f"no memory bandwidth is known of {name!r}; add it to BANDWIDTH in {__file__}")
    return known[0]


if __name__ == "__main__":
    main()

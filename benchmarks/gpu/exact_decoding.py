"""Checks that the engine agrees with Algorithm 1 on this device, for all mixings and ways to compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from gpu.report import Report
from gpu.scale import Scale
from jsfree.config import Compiling, Contrast, Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.mixing import MIXINGS, Mixing, contrastive_mixing
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.miniworld import world
from jsfree.models.loading import Captioner, load_captioner

CAPTIONER = "miniworld:captioner"
PROMPT = "Describe image in detail."
SLOTS = 4
CASES: dict[str, Mixing] = {
    "probability": MIXINGS["probability"],
    "logit": MIXINGS["logit"],
    "vcd": contrastive_mixing(Contrast(kind="vcd")),
    "vcd without image": contrastive_mixing(Contrast(kind="vcd", noise_step=None)),
    "m3id": contrastive_mixing(Contrast(kind="m3id")),
}
BFLOAT16_LIMIT = 1.5
"""Largest total variation of the engine in bfloat16 from float32, relative to that of Algorithm 1 in bfloat16."""


def measure(scale: Scale, report: Report) -> None:
    """Step ``exact-decoding``."""
    captioner = load_captioner(CAPTIONER, scale.device)
    requests = requests_for(captioner, scale)
    for name, mixing in CASES.items():
        few = requests if name == "probability" else requests[:4]
        literal = [algorithm1.decode(captioner, each, mixing) for each in few]
        if name == "probability" and scale.device == "cuda":
            on_cpu = load_captioner(CAPTIONER)
            same = [
                algorithm1.decode(on_cpu, each, mixing) == caption for each, caption in zip(few, literal, strict=True)
            ]
            report.figure("captions_equal_to_the_cpu", f"{sum(same)} of {len(same)}")
        for compiling in ways(scale, report):
            with report.part(f"{name}, {compiling}"):
                engine = DualPathEngine(captioner, Workload(SLOTS, mixing=mixing), compiling=compiling)
                decoded = engine.decode(few)
                differing = sum(one != other for one, other in zip(decoded, literal, strict=True))
                report.check(f"{name}, float32, {compiling}: captions unlike Algorithm 1", differing, 0)
    half = load_captioner(CAPTIONER, scale.device, "bfloat16")
    for compiling in ways(scale, report):
        with report.part(f"bfloat16, {compiling}"):
            compare_distributions(captioner, half, requests, compiling, report)


def measure_inductor(scale: Scale, report: Report) -> None:
    """Step ``exact-inductor``: equal captions, and the cost of compiling, also for a second layout."""
    if scale.device == "cpu":
        report.skip("inductor", "compiling takes minutes on a CPU core; tests/decoding covers it")
        return
    captioner = load_captioner(CAPTIONER, scale.device)
    requests = requests_for(captioner, scale)
    literal = [algorithm1.decode(captioner, each) for each in requests]
    engine = DualPathEngine(captioner, Workload(SLOTS), compiling="inductor")
    longer = requests_for(captioner, scale, tokens=4 * scale.exact_tokens)
    for name, batch in (("first", requests), ("second", requests), ("another_layout", longer)):
        with report.part(name):
            before, started = graphs_compiled(), time.perf_counter()
            decoded = engine.decode(batch)
            seconds = time.perf_counter() - started
            found: dict[str, float] = {"seconds": seconds}
            if compiled := graphs_compiled() - before:
                found["graphs_compiled"] = compiled
            report.figure(f"inductor_{name}", found)
            report.headline(f"{name.replace('_', ' ')} {seconds:.1f} s, {compiled} graphs")
            if batch is requests:
                differing = sum(one != other for one, other in zip(decoded, literal, strict=True))
                report.check(f"inductor, {name}: captions unlike Algorithm 1", differing, 0)


def graphs_compiled() -> int:
    """Graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def ways(scale: Scale, report: Report) -> list[Compiling]:
    """Values of ``compile`` that run here, without ``inductor``, which has its own step."""
    if scale.device == "cuda":
        return ["none", "cuda_graphs"]
    report.skip("cuda_graphs", "needs a GPU")
    return ["none"]


def requests_for(captioner: Captioner, scale: Scale, tokens: int | None = None) -> list[Request]:
    """Two captions of each image: one with h = 0, one with another h."""
    pixels = [captioner.inputs(world.draw(world.scene("development", at))) for at in range(scale.exact_images)]
    decoding = Decoding(max_new_tokens=tokens or scale.exact_tokens)
    return [
        Request(f"{at}/{role}", image, PROMPT, ratio, noise_key(0, 1, str(at), role), decoding)
        for at, image in enumerate(pixels)
        for role, ratio in (("low", 0.0), ("high", 0.2 + 0.6 * at / len(pixels)))
    ]


class RecordedMixing(Mixing):
    """A mixing that records its distributions, in the order of the tokens drawn from them."""

    def __init__(self, mixing: Mixing) -> None:
        self._mixing = mixing
        self.noise_step, self.contrastive = mixing.noise_step, mixing.contrastive
        self.drawn_from: list[torch.Tensor] = []

    def next_token_probs(self, *arguments: object, **options: object) -> torch.Tensor:
        """The wrapped mixing's distributions."""
        probs_BV = self._mixing.next_token_probs(*arguments, **options)  # type: ignore[arg-type]
        self.drawn_from += probs_BV.clone()
        return probs_BV


def compare_distributions(
    exact: Captioner, half: Captioner, requests: Sequence[Request], compiling: Compiling, report: Report
) -> None:
    """Compare the engine and Algorithm 1 in bfloat16: total variation from Algorithm 1 in float32."""
    mixing = RecordedMixing(MIXINGS["probability"])
    engine = DualPathEngine(half, Workload(SLOTS, mixing=mixing), compiling=compiling)
    for request in requests:
        engine.submit(request)
    by_id = {request.request_id: request for request in requests}
    tokens: dict[str, list[int]] = {name: [] for name in by_id}
    engines, literals = [], []
    while engine.active:
        mixing.drawn_from.clear()
        step = engine.step()
        for drawn, probs_V in zip(step.drawn, mixing.drawn_from, strict=True):
            name = drawn.request_id
            right, rounded = (
                algorithm1.next_token_probs(model, by_id[name], tokens[name]).float() for model in (exact, half)
            )
            engines.append(_total_variation(probs_V.float(), right))
            literals.append(_total_variation(rounded, right))
            tokens[name].append(drawn.token)
    found, literal = statistics.mean(engines), statistics.mean(literals)
    report.figure(f"total_variation_bfloat16_{compiling}", {"engine": found, "algorithm_1": literal})
    report.check(f"bfloat16, {compiling}: total variation from float32", found, 0.05)
    report.check(f"bfloat16, {compiling}: the same over Algorithm 1's", found / literal, BFLOAT16_LIMIT)


def _total_variation(one_V: torch.Tensor, other_V: torch.Tensor) -> float:
    return float((one_V - other_V).abs().sum()) / 2

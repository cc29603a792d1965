"""Time and cost of the benchmarks with the most expensive captions or judges, for ``jsfree plan``. Pure functions.

All numbers of tokens are estimates for photographs and the shipped prompts; a result file has the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from jsfree.config import RunConfig
from jsfree.judge.settings import Price
from jsfree.sizing import memory, rates
from jsfree.sizing.footprint import BYTES
from jsfree.sizing.memory import Lengths
from jsfree.sizing.rates import GpuKind
from jsfree.sizing.shapes import CaptionerShape

JUDGE_IMAGE = 1200
"""Tokens of an image in the prompts of a judge."""


@dataclass(frozen=True)
class Requests:
    """Requests to a judge about one answer, of one kind: their number, and tokens of prompt and reply.

    The tokens of the prompt are those besides the answer and the image.
    """

    count: int
    prompt: int
    reply: int
    has_image: bool = False
    has_answer: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its answers, beams, and what a judge is asked about each answer."""

    title: str
    answers: int
    beams: int
    requests: tuple[Requests, ...]


BENCHMARKS = (
    Benchmark("Object HalBench (300 answers, 3 beams, objects by a judge)", 300, 3, (Requests(1, 170, 80),)),
    Benchmark(
        "IC (150 images, scores and claims)",
        150,
        1,
        (
            Requests(2, 130, 350, has_image=True),
            Requests(2, 450, 8, has_answer=False),
            Requests(1, 180, 600, has_image=True),
        ),
    ),
)


@dataclass(frozen=True)
class BenchmarkCost:
    """What a benchmark takes for all models of a run.

    Args:
        title: of the benchmark.
        answers: of all models.
        seconds: of one GPU for the answers; None if the captioner does not fit or is not known.
        judge_requests: to the judge.
        prompt_tokens: of these requests.
        reply_tokens: of the replies.
        judge_cost: in the currency of the price table; None without one.
        known: the source of ``seconds``.
    """

    title: str
    answers: int
    seconds: float | None
    judge_requests: int
    prompt_tokens: int
    reply_tokens: int
    judge_cost: float | None
    known: str


def benchmark_costs(
    config: RunConfig, shape: CaptionerShape, lengths: Lengths, gpu: GpuKind | None, slots: int, price: Price | None
) -> list[BenchmarkCost]:
    """Time and cost of the benchmarks for the seed and the model of each round.

    Args:
        gpu: None without GPUs, whose times are then not known.
        slots: captions that a replica decodes together; 0 if the captioner does not fit.
        price: of the judge's tokens.
    """
    models = 1 + config.rounds
    costs = []
    for each in BENCHMARKS:
        answers = each.answers * models
        prompts = answers * sum(_prompt_tokens(kind, lengths) * kind.count for kind in each.requests)
        replies = answers * sum(kind.reply * kind.count for kind in each.requests)
        seconds = None
        if gpu is not None and slots:
            seconds = _answer_seconds(each, answers, config, shape, lengths, gpu, slots)
            seconds += models * rates.replica_start_seconds(config, shape)
        costs.append(
            BenchmarkCost(
                each.title,
                answers,
                seconds,
                answers * sum(kind.count for kind in each.requests),
                prompts,
                replies,
                None if price is None else price.cost(prompts, replies),
                "estimated" if gpu is None else gpu.shares.known,
            )
        )
    return costs


def _prompt_tokens(kind: Requests, lengths: Lengths) -> int:
    return kind.prompt + kind.has_image * JUDGE_IMAGE + kind.has_answer * lengths.caption


def _answer_seconds(
    benchmark: Benchmark,
    answers: int,
    config: RunConfig,
    shape: CaptionerShape,
    lengths: Lengths,
    gpu: GpuKind,
    slots: int,
) -> float:
    """Seconds of prefill and of decoding steps; beam search decodes one answer at a time, the engine ``slots``."""
    together = 1.0 if benchmark.beams > 1 else min(slots, answers) * rates.UTILISATION
    weights = BYTES[config.captioner.dtype] * memory.parameters(shape).total
    keys = memory.keys_of(shape, config.captioner.dtype).token_bytes
    read = weights + keys * together * benchmark.beams * (lengths.prefix + lengths.caption / 2)
    steps = answers * lengths.caption / together
    return answers * rates.prefill_seconds(shape, lengths, gpu) + steps * read / (gpu.shares.bandwidth * gpu.bandwidth)

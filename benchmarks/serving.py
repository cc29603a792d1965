"""Speed of the served models over HTTP against the bare engine and vLLM, latencies, memory, and cancelled streams.

    python benchmarks/serving.py [--rounds 5] [--clients 32] [--layouts serve through_ray haproxy] [--peer PYTHON]
        [--long 2000]

Serves MiniWorld's shipped captioner with ``jsfree serve`` and asks it over real HTTP on loopback, every request with a
new image. Rounds of the bare engine (``Engine.caption`` in this process), of plain answers and of streams take turns;
ratios are of tokens per second in the same round. ``one_at_a_time_generate`` is transformers' ``generate`` in this
process, one image after the other, without HTTP.

- ``--layouts`` serves in several ways at the same time (``serving_servers.py``) and asks them in turn. The ratios of
  the first one have the usual names.
- ``--peer`` is the interpreter of an environment with vLLM (that of ``make interop``): its server has the same
  published model in float32, and gets the same requests, of which neither has seen an image before.
- ``--long`` then sends that many requests, half of them streams of which half are left by their clients, and measures
  the growth of the servers' memory and whether all slots are free after it.

``cpu_ms_a_request`` is the CPU time of each process for a request: it depends little on what else the machine does. The
result is written to ``benchmarks/results/serving_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring import command_line, publish, ratio
from serving_client import Client, chat_body
from serving_servers import LAYOUTS, VLLM, Server, jsfree, vllm

from jsfree import config as configuration
from jsfree.miniworld import world
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.run.run import Manifest, Run
from serve.engines.ours import Engine
from serve.http.protocol import Answer, Question

TARGETS = {"bare_engine": 0.70, "bare_engine_streaming": 0.45, "one_at_a_time_generate": 2.5}
PEER_TARGET = 0.65
BARE, GENERATE = "bare", "generate"
PLAIN, STREAM = "plain", "stream"
TOKENS = 64
GENERATED = 24
"""Images of a round of ``generate``."""


@dataclass
class Load:
    """What the clients of a round saw; times in seconds."""

    tokens: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Time to the first text of each stream."""
    between: list[float] = field(default_factory=list)
    """Time between two events of a stream, divided by the tokens that the later one brings."""
    statuses: dict[int, int] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """CPU time for a request, by process."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def main() -> None:
    """Measure, write and print."""
    arguments = parse()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        run = finished_run(Path(folder) / "run")
        engine = Engine(run.config, "miniworld:captioner")
        try:
            with serving(run, arguments, Path(folder)) as servers:
                rounds = asyncio.run(measured(engine, servers, arguments))
                first = servers[arguments.layouts[0]]
                long = asyncio.run(long_run(first, arguments)) if arguments.long else {}
        finally:
            engine.close()
    loads.append(os.getloadavg()[0])
    ratios = ratios_of(rounds, arguments.layouts)
    for name, each in ratios.items():
        print(f"{name} {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})")
    figures = {"clients": arguments.clients, "settings": arguments.set, "layouts": arguments.layouts}
    publish("serving", ratios, {**figures, **figures_of(rounds), "long": long}, loads)


@contextmanager
def serving(run: Run, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Server]]:
    """The servers to compare, by name; they start one after the other."""
    servers: dict[str, Server] = {}
    try:
        for layout in arguments.layouts:
            servers[layout] = jsfree(Path(run.folder.uri), layout, arguments.set, folder)
            servers[layout].wait_until_ready()
        if arguments.peer:
            servers[VLLM] = vllm(arguments.peer, Path(run.stage(1, "model").uri), folder)
            servers[VLLM].wait_until_ready()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=160, help="requests of a round")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["serve"])
    parser.add_argument("--peer", type=Path, help="python of an environment with vLLM")
    parser.add_argument("--long", type=int, default=0, help="requests of the run in which memory is measured")
    parser.add_argument("--set", action="append", default=[], help="settings of the server")
    return parser.parse_args()


def finished_run(path: Path) -> Run:
    """A run whose model is the shipped captioner, so that both models give captions of the same length."""
    run = Run.open(configuration.build({"run": str(path)}, "benchmark"))
    captioner = load_captioner("miniworld:captioner")
    publish_captioner(captioner.model, captioner.processor, run.stage(1, "model").uri)
    run.finish(1, "train", Manifest(fingerprint="benchmark", rows_in=1, rows_out=1))
    return run


Rounds = dict[str, list[Load]]
"""The loads of each variant, one a round: ``bare``, ``generate``, and each server with ``/plain`` and ``/stream``."""


async def measured(engine: Engine, servers: Mapping[str, Server], arguments: argparse.Namespace) -> Rounds:
    """Rounds of all variants in random order, after one that warms up."""
    rounds: Rounds = {}
    for number in range(arguments.rounds + 1):
        first = 2 * number * arguments.requests
        plain, stream = (pictures(arguments.requests, first + half * arguments.requests) for half in (0, 1))
        found = {BARE: await concurrently(plain, arguments.clients, lambda _: _bare(engine))}
        variants = [(name, mode) for name in servers for mode in (PLAIN, STREAM)]
        for name, mode in random.Random(number).sample(variants, len(variants)):
            images = stream if mode == STREAM else plain
            found[f"{name}/{mode}"] = await asked(servers[name], images, arguments.clients, stream=mode == STREAM)
        found[GENERATE] = generated(plain[:GENERATED])
        if number:
            for variant, load in found.items():
                rounds.setdefault(variant, []).append(load)
            print({variant: round(load.rate) for variant, load in found.items()}, flush=True)
    return rounds


async def asked(server: Server, images: Sequence[bytes], clients: int, *, stream: bool) -> Load:
    """Ask a server about each image."""
    before = {**server.cpu_seconds(), "client": time.process_time()}
    load = await concurrently(images, clients, lambda _: _http(server.port, stream=stream))
    after = {**server.cpu_seconds(), "client": time.process_time()}
    load.cpu_ms = {name: 1000 * (used - before.get(name, 0.0)) / len(images) for name, used in after.items()}
    return load


def ratios_of(rounds: Rounds, layouts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Ratios of tokens per second in the same round; those of further layouts begin with their names."""
    rates = {variant: [load.rate for load in loads] for variant, loads in rounds.items()}
    ratios = {}
    for layout in layouts:
        prefix = "" if layout == layouts[0] else f"{layout}: "
        plain, stream = rates[f"{layout}/{PLAIN}"], rates[f"{layout}/{STREAM}"]
        ratios[f"{prefix}bare_engine"] = ratio(plain, rates[BARE], TARGETS["bare_engine"])
        ratios[f"{prefix}bare_engine_streaming"] = ratio(stream, rates[BARE], TARGETS["bare_engine_streaming"])
        ratios[f"{prefix}one_at_a_time_generate"] = ratio(plain, rates[GENERATE], TARGETS["one_at_a_time_generate"])
        if f"{VLLM}/{PLAIN}" in rates:
            ratios[f"{prefix}vllm"] = ratio(plain, rates[f"{VLLM}/{PLAIN}"], PEER_TARGET)
            ratios[f"{prefix}vllm_streaming"] = ratio(stream, rates[f"{VLLM}/{STREAM}"], PEER_TARGET)
    return ratios


def figures_of(rounds: Rounds) -> dict[str, Any]:
    """Rates, latencies, CPU time and statuses of each variant."""
    plain = {variant: loads for variant, loads in rounds.items() if variant.endswith(PLAIN)}
    stream = {variant: loads for variant, loads in rounds.items() if variant.endswith(STREAM)}
    asked = {**plain, **stream}
    return {
        "tokens_per_second": {
            variant: statistics.median(load.rate for load in loads) for variant, loads in rounds.items()
        },
        "latency_s": {name: quantiles([s for load in loads for s in load.latencies]) for name, loads in plain.items()},
        "first_token_s": {name: quantiles([s for load in loads for s in load.first]) for name, loads in stream.items()},
        "between_tokens_s": {
            name: quantiles([s for load in loads for s in load.between]) for name, loads in stream.items()
        },
        "cpu_ms_a_request": {name: median_cpu(loads) for name, loads in asked.items()},
        "statuses": {name: totals(loads) for name, loads in asked.items()},
    }


def median_cpu(loads: Sequence[Load]) -> dict[str, float]:
    """The median CPU time of each process that takes a measurable part, in ms."""
    names = {name for load in loads for name in load.cpu_ms}
    found = {name: statistics.median(load.cpu_ms.get(name, 0.0) for load in loads) for name in names}
    return {name: round(milliseconds, 2) for name, milliseconds in sorted(found.items()) if milliseconds >= 0.1}


Ask = Callable[[bytes, int, Load], Awaitable[None]]


async def concurrently(images: Sequence[bytes], clients: int, make: Callable[[int], Ask]) -> Load:
    """Ask about each image once, by some clients at a time, each with a connection of its own."""
    load, waiting = Load(), list(enumerate(images))

    async def client(number: int) -> None:
        ask = make(number)
        while waiting:
            seed, image = waiting.pop()
            started = time.perf_counter()
            await ask(image, seed, load)
            load.latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


def _bare(engine: Engine) -> Ask:
    async def ask(image: bytes, seed: int, load: Load) -> None:
        answer = await engine.caption(Question(image, world.PROMPT, 1.0, 1.0, TOKENS, seed))
        assert isinstance(answer, Answer)
        load.tokens += answer.choices[0].tokens

    return ask


def _http(port: int, *, stream: bool) -> Ask:
    client = Client(port)

    async def ask(image: bytes, seed: int, load: Load) -> None:
        answer = await client.ask(chat_body(image, seed, TOKENS, stream=stream))
        load.statuses[answer.status] = load.statuses.get(answer.status, 0) + 1
        load.tokens += answer.tokens
        if stream and answer.times:
            load.first.append(answer.times[0])
            load.between += answer.token_times()

    return ask


def generated(images: Sequence[bytes]) -> Load:
    """Captions by transformers' ``generate``, one image after the other."""
    import io

    from PIL import Image

    captioner = load_captioner("miniworld:captioner")
    tokens, started = 0, time.perf_counter()
    for image in images:
        inputs = captioner.inputs(Image.open(io.BytesIO(image)).convert("RGB"))
        ids = captioner.prompt_ids(world.PROMPT, inputs)
        with torch.inference_mode():
            output = captioner.model.generate(
                input_ids=torch.tensor([ids]),
                **captioner.forward_arguments(ids, [inputs]),
                do_sample=True,
                max_new_tokens=TOKENS,
            )
        tokens += output.shape[1] - len(ids)
    return Load(tokens, time.perf_counter() - started)


async def long_run(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory over many requests, half of them streams, of which half are left after their first text."""
    images, statuses, memory, left = pictures(200), dict[int, int](), [], 0
    for start in range(0, arguments.long, 200):
        waiting = list(range(start, start + 200))

        async def client(waiting: list[int] = waiting) -> None:
            nonlocal left
            connection = Client(server.port)
            while waiting:
                number = waiting.pop()
                stream = number % 2 == 1
                body = chat_body(images[number % len(images)], number, TOKENS, stream=stream)
                leave = stream and number % 4 == 1
                answer = await connection.ask(body, leave=leave)
                left += leave
                statuses[answer.status] = statuses.get(answer.status, 0) + 1

        await asyncio.gather(*(client() for _ in range(arguments.clients)))
        memory.append(server.memory())
        print("memory", [round(value) for value in memory], statuses, flush=True)
    await asyncio.sleep(2)
    running = await Client(server.port).metric("vllm:num_requests_running")
    return {
        "requests": arguments.long,
        "left": left,
        "statuses": statuses,
        "memory_mb": memory,
        "growth_after_first_200": memory[-1] / memory[0] - 1,
        "running_at_the_end": running,
    }


def pictures(count: int, first: int = 0) -> list[bytes]:
    """Different scenes as PNG, from the one with number ``first``."""
    return [world.png_bytes(world.scene("development", first + index)) for index in range(count)]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}


def totals(loads: Sequence[Load]) -> dict[int, int]:
    """Responses by status."""
    found: dict[int, int] = {}
    for load in loads:
        for status, count in load.statuses.items():
            found[status] = found.get(status, 0) + count
    return found


if __name__ == "__main__":
    main()

"""Speed of the served models over HTTP against the bare engine, latencies of streams, memory, and cancelled streams.

    python benchmarks/serving.py [--rounds 5] [--clients 32] [--long 2000]

Serves MiniWorld's shipped captioner with ``jsfree serve`` and asks it over real HTTP on loopback, every request with a
new image. Rounds of the bare engine (``Engine.caption`` in this process), of plain answers and of streams take turns;
ratios are of tokens per second in the same round. ``one_at_a_time_generate`` is transformers' ``generate`` in this
process, one image after the other, without HTTP. ``--long`` then sends that many requests, half of them streams of
which half are left by their clients, and measures the growth of the servers' memory and whether all slots are free
after it. The result is written to ``benchmarks/results/serving_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from measuring import command_line, publish, spread
from serving_client import Client, chat_body

from jsfree import config as configuration
from jsfree.miniworld import world
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.run.run import Manifest, Run
from serve.engines.ours import Engine
from serve.http.protocol import Answer, Question

TARGETS = {"bare_engine": 0.70, "bare_engine_streaming": 0.45, "one_at_a_time_generate": 2.5}
TOKENS = 64
GENERATED = 24
"""Images of a round of ``generate``."""
READY_SECONDS = 240.0


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

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Server:
    """A ``jsfree serve`` process."""

    def __init__(self, run: Path, overrides: Sequence[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        settings = [word for override in overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", str(run), "--port", str(self.port)]
        self._log = log
        with log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen([*command, *settings], stdout=out, stderr=subprocess.STDOUT)

    def wait_until_ready(self) -> None:
        """Wait until it says that it serves.

        Raises:
            RuntimeError: it has ended, or takes too long.
        """
        until = time.monotonic() + READY_SECONDS
        while "Ctrl-C" not in self._log.read_text(encoding="utf-8"):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self._log.read_text(encoding="utf-8")[-4000:])
            time.sleep(0.5)

    def memory(self) -> float:
        """Resident MB of the processes that serve: replicas, ingress and proxy."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        return sum(each.memory_info().rss for each in processes if "ray::" in " ".join(each.cmdline()[:1])) / 1e6

    def stop(self) -> None:
        """End it and what it started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main() -> None:
    """Measure, write and print."""
    arguments = parse()
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        run = finished_run(Path(folder) / "run")
        engine = Engine(run.config, "miniworld:captioner")
        server = Server(Path(folder) / "run", arguments.set, Path(folder) / "log.txt")
        try:
            server.wait_until_ready()
            rounds = asyncio.run(measured(engine, server, arguments))
            long = asyncio.run(long_run(server, arguments)) if arguments.long else {}
        finally:
            server.stop()
            engine.close()
    loads.append(os.getloadavg()[0])
    ratios = {name: spread(values, TARGETS[name]) for name, values in rounds.pop("ratios").items()}
    for name, each in ratios.items():
        print(f"{name} {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})")
    publish("serving", ratios, {**rounds, "long": long}, loads)


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=160, help="requests of a round")
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


async def measured(engine: Engine, server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all variants in turn, after one that warms up."""
    images = pictures(2 * arguments.requests)
    loads: dict[str, list[Load]] = {"bare": [], "plain": [], "stream": []}
    generate: list[float] = []
    for number in range(arguments.rounds + 1):
        order = random.Random(number).sample(images, arguments.requests)
        found = {
            "bare": await concurrently(order, arguments.clients, lambda _: _bare(engine)),
            "plain": await concurrently(order, arguments.clients, lambda _: _http(server.port, stream=False)),
            "stream": await concurrently(order, arguments.clients, lambda _: _http(server.port, stream=True)),
        }
        rate = generated(order[:GENERATED])
        if number:
            generate.append(rate)
            for name, load in found.items():
                loads[name].append(load)
            print({name: round(load.rate) for name, load in found.items()}, "generate", round(rate), flush=True)
    rates = {name: [load.rate for load in each] for name, each in loads.items()}
    return {
        "ratios": {
            "bare_engine": [a / b for a, b in zip(rates["plain"], rates["bare"], strict=True)],
            "bare_engine_streaming": [a / b for a, b in zip(rates["stream"], rates["bare"], strict=True)],
            "one_at_a_time_generate": [a / b for a, b in zip(rates["plain"], generate, strict=True)],
        },
        "clients": arguments.clients,
        "settings": arguments.set,
        "tokens_per_second": {name: statistics.median(each) for name, each in {**rates, "generate": generate}.items()},
        "plain_latency_s": quantiles([value for load in loads["plain"] for value in load.latencies]),
        "first_token_s": quantiles([value for load in loads["stream"] for value in load.first]),
        "between_tokens_s": quantiles([value for load in loads["stream"] for value in load.between]),
        "statuses": {name: totals(each) for name, each in loads.items()},
    }


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


def generated(images: Sequence[bytes]) -> float:
    """Tokens per second of transformers' ``generate``, one image after the other."""
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
    return tokens / (time.perf_counter() - started)


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


def pictures(count: int) -> list[bytes]:
    """Different scenes as PNG."""
    return [world.png_bytes(world.scene("development", index)) for index in range(count)]


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

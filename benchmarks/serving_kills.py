"""What clients see when a process of ``jsfree serve`` is killed under load, and how long it takes until it is back.

    python benchmarks/serving_kills.py [--repeats 5] [--clients 8]

SIGKILL of a model replica, of the HTTP application and of Serve's proxy, while clients ask for plain answers and for
streams. ``back_s`` is the time from the kill to the first answer to a request that was sent after it. The result is
written to ``benchmarks/results/serving-kills_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from measuring import command_line, publish, spread
from serving import TOKENS, finished_run, pictures
from serving_client import Client, chat_body
from serving_servers import Server, jsfree

VICTIMS = {"replica": "ServeReplica:jsfree:after", "http": "ServeReplica:jsfree:http", "proxy": "ProxyActor"}
TARGETS = {"replica": 20.0, "http": 20.0, "proxy": 40.0}
WARM_SECONDS, LONGEST_SECONDS, AFTER_SECONDS = 3.0, 150.0, 3.0


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--victims", nargs="*", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--set", action="append", default=[], help="settings of the server")
    arguments = parser.parse_args()
    loads = [os.getloadavg()[0]]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.victims}
    with tempfile.TemporaryDirectory() as folder:
        finished_run(Path(folder) / "run")
        server = jsfree(Path(folder) / "run", "serve", arguments.set, Path(folder))
        try:
            server.wait_until_ready()
            for _ in range(arguments.repeats):
                for name in arguments.victims:
                    found[name].append(asyncio.run(killed(server, name, arguments)))
                    print(name, found[name][-1], flush=True)
        finally:
            server.stop()
    loads.append(os.getloadavg()[0])
    ratios = {f"{name}_back_s": spread([each["back_s"] for each in found[name]], TARGETS[name]) for name in found}
    publish("serving-kills", ratios, {"clients": arguments.clients, **found}, loads)


async def killed(server: Server, victim: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill a process under load; what clients saw, and when it was back."""
    outcomes: Counter[str] = Counter()
    images, back = pictures(50), asyncio.Event()
    state = {"killed": float("inf"), "back": float("inf")}

    async def client(number: int) -> None:
        stream = number % 2 == 1
        for turn in range(10_000):
            if back.is_set() and time.monotonic() > state["back"] + AFTER_SECONDS:
                return
            sent = time.monotonic()
            outcome = await ask(server.port, images[(number + turn) % 50], turn, stream=stream)
            if time.monotonic() > state["killed"]:
                outcomes[f"{'stream' if stream else 'plain'}: {outcome}"] += 1
            if outcome == "answered" and sent > state["killed"] and not back.is_set():
                state["back"] = time.monotonic()
                back.set()
            if outcome != "answered":
                await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(client(number)) for number in range(arguments.clients)]
    await asyncio.sleep(WARM_SECONDS)
    os.kill(process_of(server, VICTIMS[victim]).pid, signal.SIGKILL)
    state["killed"] = time.monotonic()
    async with asyncio.timeout(LONGEST_SECONDS):
        await back.wait()
        await asyncio.gather(*tasks)
    return {"back_s": state["back"] - state["killed"], "outcomes": dict(outcomes)}


async def ask(port: int, image: bytes, seed: int, *, stream: bool) -> str:
    """How a request ended: answered, with an error event, with a status, or by a broken connection."""
    try:
        answer = await Client(port).ask(chat_body(image, seed, TOKENS, stream=stream))
    except (OSError, asyncio.IncompleteReadError, ValueError):
        return "connection refused or broken"
    if answer.status != 200:
        return f"status {answer.status}"
    return "answered" if answer.tokens else "error event"


def process_of(server: Server, name: str) -> psutil.Process:
    """The process of an actor of Serve."""
    return next(each for each in server.processes() if name in " ".join(each.cmdline()))


if __name__ == "__main__":
    main()

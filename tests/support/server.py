"""Serves a finished run with uvicorn, without Ray, in a process whose memory is capped.

    python -m tests.support.server RUN PORT [serve.key=value ...]

It prints ``ready`` when it accepts connections. ``GET /test/stall`` returns for how long the event loop was kept from
running since the last call: in seconds, and in CPU seconds of this process, which other processes do not lengthen.
"""

import asyncio
import resource
import sys
import time

import torch
import uvicorn

from jsfree.run.run import Run
from serve.app import served_models, serving_config
from serve.engines.ours import Engine
from serve.http.connections import BoundedProtocol
from serve.http.routes import create_app
from serve.keys import KeySource

HEADROOM = 1200 * 2**20
"""Bytes of address space above those in use when the server is ready: memory, and stacks of threads."""
TICK = 0.01


class StallMeter:
    """Measures how long the event loop does not run."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    async def run(self) -> None:
        """Wake up again and again, and note the longest delay."""
        while True:
            started, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(TICK)
            self.seconds = max(self.seconds, time.monotonic() - started - TICK)
            self.cpu_seconds = max(self.cpu_seconds, time.process_time() - cpu)

    async def read(self) -> dict[str, float]:
        """The longest delays since the last call."""
        measured = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        self.seconds = self.cpu_seconds = 0.0
        return measured


def address_space() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


async def serve(run: str, port: int, overrides: list[str]) -> None:
    """Serve until the process is ended."""
    config = serving_config(run, overrides)
    models = served_models(Run(config))
    engine = Engine(config, models[0].ref)  # one for all models, which starts sooner
    engines = {model.role: engine for model in models}
    app = create_app(models, engines, config.serve, config.prompt, KeySource.configured(config.serve))
    meter = StallMeter()
    app.add_api_route("/test/stall", meter.read)
    settings = uvicorn.Config(
        app, port=port, http=BoundedProtocol, lifespan="off", log_level="warning", access_log=False
    )
    server = uvicorn.Server(settings)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(TICK)
    limit = address_space() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", flush=True)  # noqa: T201
    measuring = asyncio.create_task(meter.run())
    await running
    measuring.cancel()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

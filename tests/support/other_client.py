"""A well-behaved client, which sends requests all the time and reports how long each answer took.

    python -m tests.support.other_client PORT PID

It asks in turn for ``GET /v1/models``, and for a caption by ``POST /v1/chat/completions`` with the body that is the
first line of its input, over one connection and with the key ``JSFREE_API_KEY``. When it has the first answers it
prints ``ready``. When its input ends, it prints ``{"models": [...], "captions": [...]}``: for each answer the seconds
until all of it had come, and the CPU seconds that the server, process ``PID``, used in this time. It is a process of
its own, because a thread would wait for those of the test that send other requests.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time

PAUSE = 0.01
TIMEOUT = 120.0
Times = dict[str, list[tuple[float, float]]]


class Client:
    """A connection to a server.

    Args:
        port: the server's port.
        pid: its process.
        key: its key.
    """

    def __init__(self, port: int, pid: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._clock = (~pid << 3) | 2  # of the process's CPU time: clock_getcpuclockid(3)

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[float, float]:
        """Seconds until the whole answer has come, and CPU seconds that the server used meanwhile."""
        started, used = time.monotonic(), time.clock_gettime(self._clock)
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: status {answer.status}: {content!r}")
        return time.monotonic() - started, time.clock_gettime(self._clock) - used


def main() -> None:
    """Ask until the input ends."""
    client = Client(int(sys.argv[1]), int(sys.argv[2]), os.environ["JSFREE_API_KEY"])
    caption = sys.stdin.readline()
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    times: Times = {"models": [], "captions": []}
    while True:
        times["models"].append(client.ask("GET", "/v1/models"))
        times["captions"].append(client.ask("POST", "/v1/chat/completions", caption))
        if len(times["models"]) == 1:
            print("ready", flush=True)  # noqa: T201
        if ended.wait(PAUSE):
            break
    print(json.dumps(times))  # noqa: T201


if __name__ == "__main__":
    main()

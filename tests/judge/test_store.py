"""The store of replies: claims exclude each other within and across processes, and end with their process."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from jsfree.errors import ConfigError, StorageError
from jsfree.judge.replies import Reply
from jsfree.judge.store import ReplyStore

KEY = "ab" * 32
REPLY = Reply("text", None, "stop", "m", 3, 4, 1)
HOLDER = """
import asyncio, sys
from jsfree.judge.store import ReplyStore
async def hold():
    async with ReplyStore(sys.argv[1]).claim(sys.argv[2]) as claim:
        claim.mark_sent()
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(hold())
"""


def test_a_stored_reply_is_read_back_by_another_store(tmp_path):
    ReplyStore(str(tmp_path)).write(KEY, {"text": "q"}, REPLY)
    assert ReplyStore(str(tmp_path)).read(KEY) == REPLY
    assert ReplyStore(str(tmp_path)).read("cd" * 32) is None


def test_a_damaged_reply_is_an_error_that_names_the_file(tmp_path):
    store = ReplyStore(str(tmp_path))
    for content in (b"{", b'{"reply": {"text": "x"}}'):
        store.folder.write(f"ab/{KEY}.json", content)
        with pytest.raises(StorageError, match=rf"ab/{KEY}\.json.*delete it"):
            store.read(KEY)


def test_one_claim_of_a_question_at_a_time(tmp_path):
    store, active, most = ReplyStore(str(tmp_path)), 0, 0

    async def use():
        nonlocal active, most
        async with store.claim(KEY) as claim:
            active += 1
            most = max(most, active)
            assert not claim.was_sent
            claim.mark_sent()
            await asyncio.sleep(0.005)
            claim.mark_ended()
            active -= 1

    async def run():
        await asyncio.gather(*(use() for _ in range(10)))

    asyncio.run(run())
    assert most == 1
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_claim_ends_with_its_process_and_shows_that_its_request_was_sent(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with holder:
        assert holder.stdout.readline() == "held\n"

        async def claim():
            async with ReplyStore(str(tmp_path)).claim(KEY) as claim:
                return claim.was_sent

        async def claim_in_time():
            return await asyncio.wait_for(claim(), 0.2)

        with pytest.raises(TimeoutError):
            asyncio.run(claim_in_time())
        os.kill(holder.pid, signal.SIGKILL)
    assert asyncio.run(claim()) is True


def test_a_store_must_be_local():
    with pytest.raises(ConfigError, match="must be a local folder"):
        ReplyStore("memory://cache")

"""The judge client against a simulated judge over HTTP."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from jsfree.errors import JudgeError
from jsfree.judge.judging import Judge
from jsfree.judge.replies import ReplyError, json_object
from jsfree.judge.requests import JudgeRequest
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import Fault, SimulatedJudge
from tests.support import ROOT

PNG = b"\x89PNG\r\n\x1a\n and so on"
PRICES = "currency: EUR\nas_of: 2026-11-01\nmodels:\n  simulated-judge: {input: 1000000, output: 1000000}\n"


def length_answer(text, images):
    return json.dumps({"length": len(text), "images": len(images)})


def parse(text):
    value = json_object(text)
    if "length" not in value:
        raise ReplyError("the key 'length' is missing")
    return value["length"], value["images"]


def questions(count):
    return [JudgeRequest(f"q{number}", f"question {number:03d} of the run") for number in range(count)]


def first(*faults):
    """The first requests fail in this way, the others do not."""
    return lambda number, text: faults[number] if number < len(faults) else None


@pytest.fixture
def ask(tmp_path):
    """Ask questions of a simulated judge; the keywords are its arguments and the client's settings."""

    def run(asked, server=None, **settings):
        server = server or SimulatedJudge(length_answer)
        defaults = {"model": "simulated-judge", "cache": str(tmp_path / "cache"), "backoff": 0.01, "timeout": 5}
        with server.serve() as url:
            judge = Judge(JudgeSettings(**{**defaults, "url": url, "revision": "r1", **settings}))
            return judge, judge.ask(asked, parse)

    return run


def test_replies_come_in_the_order_of_the_questions_with_their_images(ask):
    asked = [JudgeRequest("a", "1234"), JudgeRequest("b", "123", (PNG, PNG)), JudgeRequest("c", "12", role="system")]
    judge, replies = ask(asked)
    assert [(reply.request_id, reply.value) for reply in replies] == [("a", (4, 0)), ("b", (3, 2)), ("c", (2, 0))]
    assert (judge.tally.asked, judge.tally.paid, judge.tally.cached) == (3, 3, 0)
    assert judge.tally.models == {"simulated-judge": 3}


def test_a_second_run_costs_nothing_and_says_so(ask):
    ask(questions(20))
    server = SimulatedJudge(length_answer)
    judge, replies = ask(questions(20), server)
    assert server.received == []
    assert [reply.value for reply in replies] == [(len(question.text), 0) for question in questions(20)]
    assert judge.summary() == "20 questions: 20 replies from the cache, 0 new; nothing was paid"


def test_a_question_that_occurs_twice_is_paid_once(ask):
    server = SimulatedJudge(length_answer, latency=0.02)
    judge, replies = ask([JudgeRequest(str(number), "same") for number in range(8)], server)
    assert server.paid == {"same": 1}
    assert {reply.value for reply in replies} == {(4, 0)}
    assert (judge.tally.paid, judge.tally.cached) == (1, 7)


@pytest.mark.parametrize(
    ("change", "is_paid_again"),
    [
        ({}, False),
        ({"concurrency": 1}, False),
        ({"revision": "r2"}, True),
        ({"temperature": 0.5}, True),
        ({"max_tokens": 5}, True),
    ],
)
def test_settings_that_determine_replies_are_part_of_the_key(ask, change, is_paid_again):
    ask(questions(1))
    judge, _ = ask(questions(1), **change)
    assert judge.tally.paid == is_paid_again


def test_without_a_revision_replies_belong_to_their_url(ask):
    ask(questions(1), revision=None)
    assert ask(questions(1), revision=None)[0].tally.paid == 1  # each server of these tests has another port


def test_requests_in_flight_are_limited(ask):
    server = SimulatedJudge(length_answer, latency=0.03)
    ask(questions(20), server, concurrency=4)
    assert server.max_in_flight == 4


def test_requests_are_spaced_by_the_rate_limit(ask):
    server, started = SimulatedJudge(length_answer), time.monotonic()
    ask(questions(4), server, requests_per_minute=120)
    assert all(arrival - started >= 0.5 * number for number, arrival in enumerate(server.arrivals))


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.RATE_LIMIT, Fault.RATE_LIMIT_DATE, Fault.TIMEOUT])
def test_transient_failures_are_tried_again(ask, fault):
    server = SimulatedJudge(length_answer, fault=first(fault, fault), retry_after=1.1, timeout=1.0)
    started = time.monotonic()
    judge, replies = ask(questions(3), server, concurrency=1, timeout=0.3)
    assert [reply.error for reply in replies] == [None] * 3
    assert len(server.received) == judge.tally.attempts == 5
    if fault in (Fault.RATE_LIMIT, Fault.RATE_LIMIT_DATE):
        assert time.monotonic() - started > (2.2 if fault is Fault.RATE_LIMIT else 0.2)


def test_a_rate_limit_pauses_all_requests(ask):
    server = SimulatedJudge(length_answer, fault=first(Fault.RATE_LIMIT), retry_after=0.5, latency=0.02)
    ask(questions(12), server, concurrency=3)
    gaps = [after - before for before, after in zip(server.arrivals, server.arrivals[1:], strict=False)]
    assert max(gaps) > 0.4
    assert gaps.index(max(gaps)) < 6


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault.REFUSAL, "refusal", "refused"),
        (Fault.APOLOGY, "refusal", "no JSON object"),
        (Fault.FILTERED, "refusal", "content_filter|filtered"),
        (Fault.CUT_TEXT, "truncated", "no JSON object"),
        (Fault.PROSE, "unparsable", "no JSON object"),
        (Fault.CUT_BODY, "malformed", "no chat completion"),
        (Fault.WRONG_SCHEMA, "malformed", "choices: Field required"),
        (Fault.TOO_LONG, "rejected", "The prompt is too long"),
    ],
)
def test_a_question_without_a_judgement_becomes_a_counted_error_row(ask, fault, kind, message):
    server = SimulatedJudge(length_answer, fault=first(fault))
    judge, replies = ask(questions(3), server, concurrency=1)
    assert [reply.value is None for reply in replies] == [True, False, False]
    assert (replies[0].error.request_id, replies[0].error.kind) == ("q0", kind)
    assert re.search(message, replies[0].error.message)
    assert judge.tally.errors == {kind: 1}
    assert len(server.received) == 3
    if kind in ("refusal", "truncated", "unparsable") and fault is not Fault.FILTERED:
        assert replies[0].error.text
        assert f"1 {kind}" in judge.summary()


def test_an_image_of_an_unknown_format_is_an_error_row(ask):
    judge, replies = ask([JudgeRequest("a", "x", (b"BM bitmap",)), JudgeRequest("b", "y")])
    assert (replies[0].error.kind, replies[1].value) == ("undecodable", (1, 0))
    assert judge.tally.attempts == judge.tally.paid == 1


def test_paid_replies_that_cannot_be_parsed_are_not_paid_again(ask):
    ask(questions(1), SimulatedJudge(length_answer, fault=first(Fault.PROSE)))
    judge, replies = ask(questions(1))
    assert (replies[0].error.kind, judge.tally.cached, judge.tally.attempts) == ("unparsable", 1, 0)


def test_another_model_name_is_recorded_and_asked_once(ask):
    server = SimulatedJudge(length_answer, fault=lambda number, text: Fault.OTHER_MODEL)
    judge, replies = ask(questions(3), server)
    assert [reply.error for reply in replies] == [None] * 3
    assert judge.record()["replies"]["models"] == {"another-model": 3}
    assert len(server.received) == 3


def test_a_wrong_key_stops_the_run_and_appears_nowhere(ask, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JSFREE_JUDGE_API_KEY", "sk-very-secret")
    server = SimulatedJudge(length_answer, api_key="sk-right")
    with pytest.raises(JudgeError, match=r"HTTP 401.*JSFREE_JUDGE_API_KEY") as stopped:
        ask(questions(30), server)
    stored = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*") if path.is_file())
    assert "sk-very-secret" not in str(stopped.value) + caplog.text + stored
    monkeypatch.setenv("JSFREE_JUDGE_API_KEY", "sk-right")
    assert ask(questions(2), server)[0].tally.paid == 2


def test_an_empty_account_stops_the_run_at_once(ask):
    server = SimulatedJudge(length_answer, fault=lambda number, text: Fault.NO_CREDIT)
    with pytest.raises(JudgeError, match="no credit"):
        ask(questions(30), server, concurrency=2)
    assert len(server.received) <= 2


def test_a_server_that_is_down_stops_the_run_after_a_few_questions(ask):
    server = SimulatedJudge(length_answer, fault=lambda number, text: Fault.SERVER_ERROR)
    with pytest.raises(JudgeError, match=r"3 questions in a row got no reply.*Internal server error"):
        ask(questions(50), server, attempts=2, max_failures=3, concurrency=1)
    assert len(server.received) == 6


def test_an_unreachable_server_is_an_error_row_or_stops_the_run(tmp_path):
    settings = JudgeSettings(
        url="http://127.0.0.1:9/v1", cache=str(tmp_path), attempts=2, backoff=0.01, max_failures=2, concurrency=1
    )
    with pytest.raises(JudgeError, match="2 questions in a row got no reply"):
        Judge(settings).ask(questions(5), parse)
    with pytest.raises(JudgeError, match="cannot be reached"):
        Judge(settings).describe_model()


def test_a_server_that_asks_for_a_long_wait_stops_the_run(ask):
    server = SimulatedJudge(length_answer, fault=first(Fault.RATE_LIMIT), retry_after=7200)
    with pytest.raises(JudgeError, match="asks to wait for 7200 s"):
        ask(questions(3), server)


def test_tokens_and_money_are_counted(ask, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES, encoding="utf-8")
    judge, _ = ask(questions(4), prices=str(prices))
    assert (judge.tally.prompt_tokens, judge.tally.completion_tokens) == (4 * 5, 4 * 4)
    assert judge.cost() == {
        "currency": "EUR",
        "prices_as_of": "2026-11-01",
        "spent": 36.0,
        "possibly_charged_without_reply": 0.0,
    }


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_is_never_exceeded_and_the_run_continues_with_a_new_one(ask, tmp_path, concurrency):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES, encoding="utf-8")
    bound = len(questions(1)[0].text) + 64 + 10  # bytes, the chat template, and the reply
    settings = {"prices": str(prices), "max_tokens": 10, "concurrency": concurrency}
    budget = bound + 9 * 9.5  # a reply costs 9: ten replies leave less than the bound
    server = SimulatedJudge(length_answer, latency=0.005)
    with pytest.raises(JudgeError, match=r"budget .* spent: 90\.0000 of .* EUR.*10 new replies are stored"):
        ask(questions(40), server, budget=budget, **settings)
    assert len(server.received) == sum(server.paid.values()) == 10
    judge, replies = ask(questions(40), server, budget=1000, **settings)
    assert (judge.tally.cached, judge.tally.paid, len(replies)) == (10, 30, 40)
    assert set(server.paid.values()) == {1}


def test_timeouts_count_against_the_budget(ask, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES, encoding="utf-8")
    server = SimulatedJudge(length_answer, fault=first(Fault.TIMEOUT), timeout=1.0)
    judge, _ = ask(questions(1), server, prices=str(prices), max_tokens=10, budget=1000, timeout=0.2)
    assert judge.cost()["possibly_charged_without_reply"] == len(questions(1)[0].text) + 64 + 10


def test_the_end_of_a_model_is_read_from_the_list_of_models(ask, tmp_path):
    server = SimulatedJudge(length_answer, shutdown_date="2027-01-14")
    with server.serve() as url:
        settings = JudgeSettings(url=url, model="simulated-judge", cache=str(tmp_path))
        served = Judge(settings).describe_model()
        other = Judge(settings.model_copy(update={"model": "gone"})).describe_model()
    assert (served.is_listed, str(served.shutdown_date)) == (True, "2027-01-14")
    assert (other.is_listed, other.available) == (False, ("simulated-judge",))


RUN = """
import json, sys
from jsfree.judge.judging import Judge
from jsfree.judge.requests import JudgeRequest
from jsfree.judge.settings import JudgeSettings
judge = Judge(JudgeSettings(url=sys.argv[1], cache=sys.argv[2], concurrency=4, backoff=0.01, model="simulated-judge"))
replies = judge.ask([JudgeRequest("", f"question {number:03d}") for number in range(int(sys.argv[3]))], json.loads)
print(json.dumps([len(replies), judge.tally.cached, judge.tally.paid, judge.tally.interrupted]))
"""


def start(url, cache, count):
    command = [sys.executable, "-c", RUN, url, str(cache), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT)


def stored(cache):
    return {json.loads(path.read_bytes())["question"]["text"] for path in cache.rglob("*.json")}


@pytest.mark.slow
def test_a_run_killed_twice_is_finished_without_paying_a_stored_reply_again(tmp_path):
    server, kept = SimulatedJudge(length_answer, latency=0.005), []
    with server.serve() as url:
        for count in (90, 180):
            with start(url, tmp_path, 300) as run:
                while sum(1 for _ in tmp_path.rglob("*.json")) < count:
                    assert run.poll() is None
                    time.sleep(0.02)
                os.kill(run.pid, signal.SIGKILL)
            kept.append((stored(tmp_path), len(server.received)))
        with start(url, tmp_path, 300) as run:
            finished, cached, paid, interrupted = json.loads(run.communicate(timeout=300)[0])
    for texts, received in kept:
        assert not texts & set(server.received[received + 4 :])  # 4 may have been in flight
    assert (finished, cached, paid) == (300, len(kept[-1][0]), 300 - len(kept[-1][0]))
    assert interrupted <= 4
    assert stored(tmp_path) == server.paid.keys()
    assert sum(server.paid.values()) - 300 <= 2 * 4  # only questions in flight at a kill may be paid again
    assert len(server.paid) == 300


@pytest.mark.slow
def test_two_processes_that_share_a_store_pay_each_question_once(tmp_path):
    server = SimulatedJudge(length_answer, latency=0.005)
    with server.serve() as url, start(url, tmp_path, 60) as one, start(url, tmp_path, 60) as two:
        outputs = [json.loads(run.communicate(timeout=300)[0]) for run in (one, two)]
    assert len(server.received) == 60
    assert set(server.paid.values()) == {1}
    assert [output[0] for output in outputs] == [60, 60]
    assert sum(output[2] for output in outputs) == 60

"""Metrics of answers and streams, with a model whose timing and tokens are known."""

import asyncio
import re
from dataclasses import replace

import pytest

from jsfree.config import Serve
from jsfree.decoding.timing import Timing
from serve.http import context, metering
from serve.http.metering import metered
from serve.http.metrics import Metrics
from serve.http.protocol import Answer, Choice, Delta, Question, Refusal, Started

QUESTION = Question(b"", "Describe.", 0.0, 1.0, 4, 0, choices=2)


class Model:
    """Two captions of three tokens each, 30 ms apart, or a refusal."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.refusal = refusal

    async def caption(self, question):
        await asyncio.sleep(0.05)
        if self.refusal:
            return self.refusal
        return Answer((Choice("a b c", "stop", 3), Choice("d e f", "length", 3)), 29)

    async def stream(self, question):
        yield Started(29)
        await asyncio.sleep(0.06)
        yield (Delta(0, "a", (), 1), Delta(1, "d", (), 1))
        await asyncio.sleep(0.06)
        if self.refusal:
            yield self.refusal
            return
        yield (Delta(0, " b c", (), 3, "stop"), Delta(1, " e f", (), 3, "length"))

    async def healthy(self):
        return True


def values(metrics: Metrics) -> dict[str, float]:
    """The metrics by name and labels, without the model's."""
    lines = [line.rpartition(" ") for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    found = {re.sub(r'model_name="after",?', "", name): float(value) for name, _, value in lines}
    return {name.removesuffix("{}").replace(",}", "}"): value for name, value in found.items()}


def observed(model: Model, settings: Serve | None = None) -> tuple[object, Metrics]:
    metrics = Metrics()
    return metered({"after": model}, metrics, settings or Serve())["after"], metrics


async def consumed(model) -> list:
    return [part async for part in model.stream(QUESTION)]


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_and_captions_are_counted(streamed):
    model, metrics = observed(Model())

    async def run():
        record = context.begin(None)
        await (consumed(model) if streamed else model.caption(QUESTION))
        return record

    record = asyncio.run(run())
    counted = values(metrics)
    assert counted["vllm:prompt_tokens_total"] == 29
    assert counted["vllm:generation_tokens_total"] == 6
    assert counted['vllm:request_success_total{finished_reason="stop"}'] == 1
    assert counted['vllm:request_success_total{finished_reason="length"}'] == 1
    assert counted["vllm:e2e_request_latency_seconds_count"] == 1
    assert (record.models, record.prompt_tokens, record.completion_tokens) == (["after"], 29, 6)


class Timed(Model):
    """Two captions that waited 0.2 s and 1.2 s for a slot; the second had its first token 1.5 s before it ended."""

    timings = Timing(0.2, 0.3, 1.0), Timing(1.2, 1.5, 3.0)

    async def caption(self, question):
        answer = await super().caption(question)
        choices = (replace(choice, timing=timing) for choice, timing in zip(answer.choices, self.timings, strict=True))
        return replace(answer, choices=tuple(choices))

    async def stream(self, question):
        async for part in super().stream(question):
            if isinstance(part, tuple) and part[0].finish:
                part = tuple(replace(delta, timing=timing) for delta, timing in zip(part, self.timings, strict=True))
            yield part


@pytest.mark.parametrize("streamed", [False, True])
def test_the_time_in_the_queue_is_observed_for_each_caption(streamed):
    model, metrics = observed(Timed())
    asyncio.run(consumed(model) if streamed else model.caption(QUESTION))
    counted = values(metrics)
    assert counted["vllm:request_queue_time_seconds_count"] == 2
    assert counted["vllm:request_queue_time_seconds_sum"] == pytest.approx(1.4)


def test_the_time_to_the_first_token_of_a_plain_answer_is_that_of_a_stream(monkeypatch):
    """An answer after 3.4 s, of which the engine took 3.0: the first tokens came after 0.7 s and 1.9 s."""
    clock = iter([10.0, 13.4])
    monkeypatch.setattr(metering.time, "perf_counter", lambda: next(clock))
    model, metrics = observed(Timed())
    asyncio.run(model.caption(QUESTION))
    counted = values(metrics)
    assert counted["vllm:time_to_first_token_seconds_count"] == 2
    assert counted["vllm:time_to_first_token_seconds_sum"] == pytest.approx(0.7 + 1.9)
    assert counted["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(3.4)


def test_a_streams_tokens_are_timed():
    model, metrics = observed(Model())
    asyncio.run(consumed(model))
    counted = values(metrics)
    assert counted["vllm:time_to_first_token_seconds_count"] == 2
    assert 0.12 <= counted["vllm:time_to_first_token_seconds_sum"] < 1
    assert counted["vllm:inter_token_latency_seconds_count"] == 4
    assert 0.12 <= counted["vllm:inter_token_latency_seconds_sum"] < 1  # two tokens in 60 ms, twice


def test_refusals_are_counted_by_reason():
    for streamed in (False, True):
        model, metrics = observed(Model(Refusal("overloaded", "no")))
        asyncio.run(consumed(model) if streamed else model.caption(QUESTION))
        assert values(metrics)['jsfree:request_refused_total{reason="overloaded"}'] == 1


def test_load_is_reported_while_captions_are_decoded():
    model, metrics = observed(Model(), Serve(slots=3))

    async def run() -> dict[str, float]:
        tasks = [asyncio.create_task(model.caption(QUESTION)) for _ in range(2)]
        await asyncio.sleep(0)
        during = values(metrics)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return during

    during = asyncio.run(run())
    assert during["vllm:num_requests_running"] == 3
    assert during["vllm:num_requests_waiting"] == 1
    assert during["vllm:kv_cache_usage_perc"] == 1
    after = values(metrics)
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0


def test_the_tokens_of_a_stream_that_its_client_leaves_are_counted():
    model, metrics = observed(Model())

    async def run():
        record = context.begin(None)
        parts = model.stream(QUESTION)
        for _ in range(2):  # its start, and the first token of both captions
            await anext(parts)
        await parts.aclose()
        return record

    record = asyncio.run(run())
    counted = values(metrics)
    assert counted["vllm:generation_tokens_total"] == record.completion_tokens == 2
    assert 'vllm:request_success_total{finished_reason="stop"}' not in counted


@pytest.mark.parametrize(
    ("role", "settings"),
    [
        ("m1", {"between": {"replicas": 2}}),
        ("before", {"before": {"replicas": 2}}),
        ("after", {"after": {"autoscaling": {"max": 2}}}),
    ],
)
def test_load_is_measured_against_the_slots_of_all_replicas(role, settings):
    metrics = Metrics()
    model = metered({role: Model()}, metrics, Serve.model_validate({"slots": 3, **settings}))[role]

    async def run() -> str:
        task = asyncio.create_task(model.caption(QUESTION))
        await asyncio.sleep(0)
        during = metrics.text().decode()
        await task
        return during

    # Two captions of six slots.
    assert f'vllm:kv_cache_usage_perc{{model_name="{role}"}} 0.3333' in asyncio.run(run())


def test_a_stream_that_its_client_leaves_is_no_longer_counted():
    model, metrics = observed(Model())

    async def run() -> None:
        parts = model.stream(QUESTION)
        await anext(parts)
        assert values(metrics)["vllm:num_requests_running"] == 2
        await parts.aclose()

    asyncio.run(run())
    assert values(metrics)["vllm:num_requests_running"] == 0

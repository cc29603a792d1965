"""Prometheus metrics of the server, under vLLM's names where they mean the same, so that its dashboards work.

They are those of one process that serves HTTP.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MODEL = "model_name"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Metrics:
    """The metrics of this process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram("vllm:time_to_first_token_seconds", "Time to first token")
        self.queue = self._histogram("vllm:request_queue_time_seconds", "Time until a slot was free")
        self.inter_token = self._histogram("vllm:inter_token_latency_seconds", "Time per token of streams", True)
        self.latency = self._histogram("vllm:e2e_request_latency_seconds", "Time to the end of an answer")
        self.running = self._gauge("vllm:num_requests_running", "Captions that are being decoded")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Captions that wait for a slot")
        self.cache_usage = self._gauge("vllm:kv_cache_usage_perc", "Fraction of the slots of the KV cache in use")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts, including image tokens")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens of captions")
        self.success = self._counter("vllm:request_success", "Captions, by why they ended", "finished_reason")
        self.refused = self._counter("jsfree:request_refused", "Requests that a model refused, by reason", "reason")
        labels = ("route", "method", "status")
        self._requests = Counter("jsfree:http_requests", "HTTP requests", labels, registry=self.registry)
        self._durations = Histogram(
            "jsfree:http_request_duration_seconds",
            "Time to the end of a response",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a response; ``route`` must be one of a few, so that clients cannot add time series."""
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._durations.labels(route).observe(seconds)

    def _histogram(self, name: str, text: str, per_token: bool = False) -> Histogram:
        buckets = TOKEN_SECONDS if per_token else SECONDS
        return Histogram(name, text, (MODEL,), buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, (MODEL,), registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (MODEL, *labels), registry=self.registry)

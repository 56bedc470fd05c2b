"""Prometheus metrics of one specialist, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlx_router.specialist.counters import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
P = "mlx_router_specialist_"


class Metrics:
    """`look` gives the engine's latest snapshot, (waiting, running), and resident memory in bytes."""

    def __init__(self, look: Callable[[], tuple[Snapshot | None, tuple[int, int], int]]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            P + "requests", "Requests by adapter and status", ["adapter", "status"], registry=self._registry
        )
        self.first_token = Histogram(
            P + "first_token_seconds", "Arrival to first token", buckets=SECONDS, registry=self._registry
        )
        self.duration = Histogram(
            P + "request_seconds", "Arrival to last byte", buckets=SECONDS, registry=self._registry
        )
        self.swap = Histogram(
            P + "adapter_load_seconds", "Reading, checking and placing an adapter", buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(EngineCollector(look))

    def page(self) -> bytes:
        """The body of GET /metrics."""
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """Turns the engine's own counters into metrics when they are asked for."""

    def __init__(self, look: Callable[[], tuple[Snapshot | None, tuple[int, int], int]]) -> None:
        self._look = look

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot, (waiting, running), memory = self._look()
        yield GaugeMetricFamily(P + "waiting", "Jobs in the queue", value=waiting)
        yield GaugeMetricFamily(P + "running", "Jobs in the batch", value=running)
        yield GaugeMetricFamily(P + "memory_bytes", "Resident memory of the process", value=memory)
        if snapshot is None:
            return
        counts, bank = snapshot.counters, snapshot.bank
        totals: dict[str, tuple[str, float]] = {
            "jobs_started": ("Jobs that left the queue", counts.started),
            "jobs_finished": ("Jobs that came to their end", counts.finished),
            "jobs_failed": ("Jobs that ended with an error", counts.failed),
            "jobs_cancelled": ("Jobs whose client left", counts.cancelled),
            "prompt_tokens": ("Prompt tokens of started jobs", counts.prompt_tokens),
            "cached_tokens": ("Prompt tokens taken from the prompt cache", counts.cached_tokens),
            "steps": ("Steps of the model", counts.steps),
            "step_seconds": ("Time in steps of the model", counts.step_s),
            "decoded_rows": ("Rows that got a token, over all steps", counts.decoded_rows),
            "recoveries": ("Batches made again after a failure", counts.recoveries),
            "adapter_loads": ("Adapters put into slots", bank["loads"]),
            "adapter_evictions": ("Adapters that made room for others", bank["evictions"]),
            "prompt_cache_hits": ("Prompts that began with a known state", snapshot.cache_hits),
            "prompt_cache_misses": ("Prompts that did not", snapshot.cache_misses),
            "prompt_cache_evictions": ("States dropped for room", snapshot.cache_evictions),
        }
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(P + name, text, value=value)
        gauges: dict[str, tuple[str, float]] = {
            "bank_bytes": ("Memory of the adapter bank", bank["bytes"]),
            "bank_budget_bytes": ("Most that the bank may use", bank["budget_bytes"]),
            "bank_slots": ("Slots, the base's included", bank["slots"]),
            "bank_slots_used": ("Slots with an adapter", bank["used"]),
            "state_bytes": ("Memory of running rows", snapshot.state_bytes),
            "prompt_cache_bytes": ("Memory of the prompt cache", snapshot.cache_bytes),
            "prompt_cache_entries": ("States in the prompt cache", snapshot.cache_entries),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(P + name, text, value=value)
        tokens: Any = CounterMetricFamily(P + "generated_tokens", "Tokens produced, by adapter", labels=["adapter"])
        for adapter, count in counts.tokens.items():
            tokens.add_metric([adapter], count)
        yield tokens

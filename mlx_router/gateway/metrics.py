"""Counters and histograms of the gateway, plain numbers on the event loop, rendered for Prometheus on demand."""

from __future__ import annotations

import resource
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

_FINE_S = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_COARSE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Bucket counts, each for its own range, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def quantile(self, q: float) -> float:
        """Upper bound of the bucket that holds the q-quantile; 0.0 where nothing was counted."""
        wanted = q * sum(self.counts)
        seen = 0
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            seen += count
            if seen >= wanted and seen:
                return bound
        return 0.0

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The Prometheus form: cumulative counts."""
        cumulative, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            cumulative.append((bound, float(seen)))
        family = HistogramMetricFamily(name, documentation)
        family.add_metric([], cumulative, self.total)
        return family


Gauges = Callable[[], Iterable[tuple[str, str, dict[str, str], float]]]  # name, help, labels, value


class Metrics(Collector):
    """Everything that /metrics shows. `gauges` yields what is read off the parts at that moment."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self.requests: Counter[tuple[str, str, str, str, int]] = Counter()  # endpoint, domain, adapter, reason, status
        self.tokens: Counter[tuple[str, str, str]] = Counter()  # kind, domain, adapter
        self.errors: Counter[tuple[str, str, str, str]] = Counter()  # domain, adapter, reason, code
        self.events: Counter[str] = Counter()  # retries, disconnects, refused connections, …
        self.admin: Counter[tuple[str, str]] = Counter()  # action, status
        self.encode = Histogram(_FINE_S)
        self.batch_prompts = 0
        self.overhead = Histogram(_FINE_S)
        self.first_byte = Histogram(_COARSE_S)
        self.duration = Histogram(_COARSE_S)
        self.total = 0
        self.gauges: Gauges = lambda: ()

    def render(self) -> bytes:
        """The text of /metrics."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield self._counter(
            "mlx_router_requests",
            "Requests answered",
            ("endpoint", "domain", "adapter", "reason", "status"),
            {(*key[:4], str(key[4])): value for key, value in self.requests.items()},
        )
        yield self._counter(
            "mlx_router_tokens", "Tokens as counted by upstreams", ("kind", "domain", "adapter"), self.tokens
        )
        yield self._counter(
            "mlx_router_errors",
            "Requests that ended in an error",
            ("domain", "adapter", "reason", "code"),
            self.errors,
        )
        yield self._counter(
            "mlx_router_events",
            "Retries, disconnects and other incidents",
            ("event",),
            {(name,): value for name, value in self.events.items()},
        )
        yield self._counter(
            "mlx_router_adapter_admin", "Adapter loads, unloads and pins sent on", ("action", "status"), self.admin
        )
        yield self.encode.family("mlx_router_encode_seconds", "One batch through encoder and head")
        prompts = CounterMetricFamily("mlx_router_encoded_prompts", "Prompts that were encoded")
        prompts.add_metric([], self.batch_prompts)
        yield prompts
        yield self.overhead.family(
            "mlx_router_overhead_seconds", "Request read to request sent on, without waiting for the router"
        )
        yield self.first_byte.family("mlx_router_first_byte_seconds", "Request sent on to first byte of the answer")
        yield self.duration.family("mlx_router_request_seconds", "Whole requests")
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, documentation, labels, value in self.gauges():
            family = families.get(name)
            if family is None:
                family = families[name] = GaugeMetricFamily(name, documentation, labels=list(labels))
            family.add_metric(list(labels.values()), value)
        yield from families.values()
        resident = GaugeMetricFamily("mlx_router_resident_bytes", "Memory of the gateway process")
        resident.add_metric([], float(psutil.Process().memory_info().rss))
        yield resident
        memory = GaugeMetricFamily("mlx_router_resident_peak_bytes", "Peak memory of the gateway process")
        memory.add_metric([], float(peak_bytes()))
        yield memory

    @staticmethod
    def _counter(
        name: str, documentation: str, labels: tuple[str, ...], values: Mapping[Any, int]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=labels)
        for key, value in values.items():
            family.add_metric(key, value)
        return family


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

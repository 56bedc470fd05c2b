"""What a child's /metrics say about its traffic: requests and tokens a second, the median duration."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 10.0
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_BOUND = re.compile(r'le="([^"]+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Where a server keeps its figures."""

    requests: str
    tokens: str
    seconds: str  # a histogram


OF_GATEWAY = Names(
    requests="mlx_router_requests_total", tokens="mlx_router_tokens_total", seconds="mlx_router_request_seconds"
)
OF_SPECIALIST = Names(
    requests="mlx_router_specialist_requests_total",
    tokens="mlx_router_specialist_generated_tokens_total",
    seconds="mlx_router_specialist_request_seconds",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading."""

    at: float  # time.monotonic()
    requests: float
    tokens: float
    buckets: tuple[tuple[float, float], ...]  # upper bound in seconds, requests up to there


@dataclass(slots=True)
class Traffic:
    """Readings of the last seconds, and what follows from them."""

    names: Names
    _samples: deque[Sample] = field(default_factory=deque)

    def read(self, page: str, now: float) -> None:
        """Take in the text of a /metrics page."""
        sample = parse(page, self.names, now)
        if self._samples and sample.requests < self._samples[-1].requests:  # a new process counts from zero
            self._samples.clear()
        self._samples.append(sample)
        while len(self._samples) > 2 and now - self._samples[0].at > WINDOW_S:
            self._samples.popleft()

    def forget(self) -> None:
        """The process is gone."""
        self._samples.clear()

    def figures(self) -> dict[str, float | int | None]:
        """`requests`, `requests_per_s`, `tokens_per_s`, `p50_ms` of the window, else of the process's life."""
        if not self._samples:
            return {"requests": None, "requests_per_s": None, "tokens_per_s": None, "p50_ms": None}
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at - first.at
        before = dict(first.buckets)
        recent = tuple((bound, count - before.get(bound, 0.0)) for bound, count in last.buckets)
        median_s = quantile(recent, 0.5)
        if median_s is None:
            median_s = quantile(last.buckets, 0.5)
        return {
            "requests": int(last.requests),
            "requests_per_s": round((last.requests - first.requests) / span_s, 2) if span_s else None,
            "tokens_per_s": round((last.tokens - first.tokens) / span_s, 1) if span_s else None,
            "p50_ms": None if median_s is None else round(median_s * 1e3, 2),
        }


def parse(page: str, names: Names, now: float) -> Sample:
    """The few figures that are wanted from a page in Prometheus' text format."""
    requests = tokens = 0.0
    buckets: dict[float, float] = {}
    for name, labels, value in _SAMPLE.findall(page):
        if name == names.requests:
            requests += float(value)
        elif name == names.tokens and 'kind="prompt"' not in labels:
            tokens += float(value)
        elif name == f"{names.seconds}_bucket" and (bound := _BOUND.search(labels)):
            buckets[float(bound[1])] = buckets.get(float(bound[1]), 0.0) + float(value)
    return Sample(now, requests, tokens, tuple(sorted(buckets.items())))


def quantile(buckets: tuple[tuple[float, float], ...], q: float) -> float | None:
    """The q-quantile of a cumulative histogram, linear within its bucket; None where nothing was counted."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = q * buckets[-1][1]
    low, seen = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - seen) / max(count - seen, 1e-9)
        low, seen = bound, count
    return low

"""Figures from pages in Prometheus' format."""

from __future__ import annotations

import pytest

from mlx_router.supervisor.traffic import OF_SPECIALIST, Traffic, quantile


def page(requests: int, tokens: int, fast: int, slow: int) -> str:
    return f"""# HELP mlx_router_specialist_requests_total Requests by adapter and status
# TYPE mlx_router_specialist_requests_total counter
mlx_router_specialist_requests_total{{adapter="a",status="200"}} {requests - 1}.0
mlx_router_specialist_requests_total{{adapter="b",status="429"}} 1.0
mlx_router_specialist_request_seconds_bucket{{le="0.1"}} {fast}.0
mlx_router_specialist_request_seconds_bucket{{le="0.5"}} {fast + slow}.0
mlx_router_specialist_request_seconds_bucket{{le="+Inf"}} {fast + slow}.0
mlx_router_specialist_request_seconds_count {fast + slow}.0
mlx_router_specialist_generated_tokens_total{{adapter="a"}} {tokens}.0
"""


def test_rates_are_of_the_window_and_the_median_is_of_its_requests() -> None:
    traffic = Traffic(OF_SPECIALIST)
    assert traffic.figures()["requests"] is None
    traffic.read(page(10, 100, 10, 0), 100.0)
    assert traffic.figures() == {"requests": 10, "requests_per_s": None, "tokens_per_s": None, "p50_ms": 50.0}
    traffic.read(page(30, 300, 10, 20), 104.0)
    assert traffic.figures() == {"requests": 30, "requests_per_s": 5.0, "tokens_per_s": 50.0, "p50_ms": 300.0}


def test_old_readings_are_dropped_and_a_new_process_counts_from_zero() -> None:
    traffic = Traffic(OF_SPECIALIST)
    for second in range(0, 60, 2):
        traffic.read(page(10 + second * 10, 0, 0, 0), float(second))
    assert traffic.figures()["requests_per_s"] == 10.0
    assert len(traffic._samples) < 10
    traffic.read(page(1, 0, 0, 0), 62.0)
    assert traffic.figures()["requests_per_s"] is None


@pytest.mark.parametrize(
    ("buckets", "median"),
    [
        ((), None),
        (((1.0, 0.0), (float("inf"), 0.0)), None),
        (((1.0, 4.0), (2.0, 4.0), (float("inf"), 4.0)), 0.5),
        (((1.0, 0.0), (2.0, 4.0), (float("inf"), 4.0)), 1.5),
        (((1.0, 0.0), (2.0, 1.0), (float("inf"), 9.0)), 2.0),
    ],
)
def test_the_median_lies_in_its_bucket(buckets: tuple[tuple[float, float], ...], median: float | None) -> None:
    assert quantile(buckets, 0.5) == median

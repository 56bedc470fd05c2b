"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mlx_router.gateway.metrics import Histogram, Metrics


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 9.0):
        histogram.observe(value)
    samples = {s.labels.get("le", s.name): s.value for s in histogram.family("x", "y").samples}
    assert samples == {"0.1": 2.0, "1.0": 3.0, "+Inf": 4.0, "x_count": 4.0, "x_sum": 9.65}
    assert histogram.quantile(0.5) == 0.1
    assert Histogram((1.0,)).quantile(0.5) == 0.0


def test_the_text_can_be_parsed() -> None:
    metrics = Metrics()
    metrics.requests[("/chat/completions", "sql", "mascarade-sql", "classified", 200)] += 2
    metrics.tokens[("prompt", "sql", "mascarade-sql")] += 7
    metrics.errors[("sql", "base", "unavailable", "upstream_unavailable")] += 1
    metrics.gauges = lambda: [
        ("mlx_router_x", "help", {"pool": "a"}, 1.0),
        ("mlx_router_x", "help", {"pool": "b"}, 2.0),
    ]
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert families["mlx_router_requests"].samples[0].value == 2.0
    assert [sample.value for sample in families["mlx_router_x"].samples] == [1.0, 2.0]
    assert families["mlx_router_resident_peak_bytes"].samples[0].value > 10**6

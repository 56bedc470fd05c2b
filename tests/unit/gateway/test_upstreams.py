"""Which endpoint takes the next request."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_router.config import parse_config
from mlx_router.gateway.routes import Step
from mlx_router.gateway.upstreams import Endpoint, Fleet, build_fleet, root_of

STEP = Step(("code",), "sql", "sql")
BASE = Step(("code",), None, "base")


def endpoint(url: str, *, state: str = "up", adapter: str = "resident", in_flight: int = 0) -> Endpoint:
    made = Endpoint(key=f"code {url}", pool="code", kind="specialist", url=url)
    made.state = state  # type: ignore[assignment]
    made.adapters, made.adapters_known = {"sql": adapter}, True
    made.in_flight = in_flight
    return made


def test_least_loaded_first() -> None:
    busy, idle = endpoint("a", in_flight=3), endpoint("b", in_flight=1)
    assert Fleet([busy, idle]).pick(BASE)[0] is idle


def test_equal_ones_take_turns() -> None:
    first, second = endpoint("a"), endpoint("b")
    fleet = Fleet([first, second])
    order = []
    for _ in range(4):
        chosen, _ = fleet.pick(BASE)
        assert chosen is not None
        fleet.take(chosen)
        order.append(chosen.url)
    assert order == ["a", "b", "a", "b"]


def test_a_resident_adapter_is_worth_a_short_queue() -> None:
    there, elsewhere = endpoint("a", in_flight=2), endpoint("b", adapter="available")
    fleet = Fleet([there, elsewhere])
    assert fleet.pick(STEP)[0] is there
    there.in_flight = 4
    assert fleet.pick(STEP)[0] is elsewhere


def test_a_conversation_stays_with_its_cache_until_the_queue_is_long() -> None:
    first, second = endpoint("a", in_flight=2), endpoint("b")
    fleet = Fleet([first, second])
    assert fleet.pick(BASE, conversation=first.key)[0] is first
    first.in_flight = 5
    assert fleet.pick(BASE, conversation=first.key)[0] is second


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (endpoint("a", state="down"), "code is down"),
        (endpoint("a", state="unknown"), "code is not ready"),
        (endpoint("a", adapter="quarantined"), "adapter sql is quarantined on code"),
    ],
)
def test_those_that_cannot_are_passed_over_with_a_reason(made: Endpoint, reason: str) -> None:
    chosen, why = Fleet([made]).pick(STEP)
    assert chosen is None
    assert reason in why[0]


def test_full_ones_are_passed_over() -> None:
    full, bounded = endpoint("a"), endpoint("b", in_flight=2)
    full.overloaded(10.0)
    bounded.max_concurrent = 2
    chosen, why = Fleet([full, bounded]).pick(BASE)
    assert chosen is None
    assert why == ["code is full"]


def test_how_long_a_full_fleet_is_full() -> None:
    first, second = endpoint("a"), endpoint("b")
    fleet = Fleet([first, second])
    first.overloaded(10.0)
    assert fleet.full_for_s([BASE]) is None
    second.overloaded(5.0)
    assert fleet.full_for_s([STEP, BASE]) == pytest.approx(5.0, abs=0.5)
    first.adapters["sql"] = "quarantined"
    assert fleet.full_for_s([STEP]) is None  # room would not help
    assert fleet.full_for_s([BASE]) is not None
    second.failure("connection refused")
    assert fleet.full_for_s([BASE]) is None
    assert fleet.full_for_s([]) is None


def test_those_that_failed_this_request_are_not_tried_again() -> None:
    first, second = endpoint("a"), endpoint("b", in_flight=9)
    assert Fleet([first, second]).pick(BASE, tried=frozenset({first.key}))[0] is second


def test_a_failed_one_gets_nothing_until_it_is_seen_again() -> None:
    failed, other = endpoint("a"), endpoint("b", in_flight=9)
    failed.failure("connection refused")
    assert Fleet([failed, other]).pick(BASE)[0] is other
    assert Fleet([failed]).pick(BASE) == (None, ["code is down: connection refused"])


def test_a_reload_keeps_what_is_known() -> None:
    raw = {"specialist": [{"name": "code", "port": 9361, "replicas": ["http://mac2:9361/v1/"]}]}
    old = build_fleet(parse_config(raw, home=Path("/nowhere")))
    assert [item.url for item in old] == ["http://127.0.0.1:9361", "http://mac2:9361"]
    kept = next(iter(old))
    kept.state = "up"
    new = build_fleet(parse_config({"specialist": [{"name": "code", "port": 9361}]}, home=Path("/nowhere")), old)
    assert list(new) == [kept]


def test_roots() -> None:
    assert root_of("http://a:1/v1/") == "http://a:1"
    assert root_of("http://a:1") == "http://a:1"

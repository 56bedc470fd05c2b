"""From manifests and [routes] to ways of answering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_router.config import parse_config
from mlx_router.errors import ConfigError
from mlx_router.gateway.routes import AdapterEntry, Destination, Step, build_routes

KICAD = AdapterEntry(name="mascarade-kicad", domains=("kicad", "kicad-pcb"), specialist="hardware")
SQL = AdapterEntry(name="mascarade-sql", domains=("sql",), specialist="code")


def config(**raw: Any) -> Any:
    raw.setdefault(
        "specialist",
        [
            {"name": "hardware", "port": 1, "adapters": ["mascarade-kicad"]},
            {"name": "code", "port": 2, "adapters": ["mascarade-sql"]},
        ],
    )
    return parse_config(raw, home=Path("/nowhere"))


def test_domains_go_to_their_adapter_then_to_a_base() -> None:
    routes = build_routes(config(), [KICAD, SQL])
    destination = routes.destination("kicad-pcb")
    assert destination == Destination("adapter", "mascarade-kicad")
    assert routes.steps(destination) == (
        Step(("hardware",), "mascarade-kicad", "mascarade-kicad"),
        Step(("hardware",), None, "base"),
        Step(("hardware", "code"), None, "base"),
    )


def test_a_domain_without_adapter_goes_to_any_base() -> None:
    routes = build_routes(config(), [KICAD])
    assert routes.steps(routes.destination("general")) == (Step(("hardware", "code"), None, "base"),)


def test_configured_routes_win() -> None:
    upstream = [{"name": "eurollm", "url": "http://h/v1", "model": "EuroLLM"}]
    routes = build_routes(config(upstream=upstream, routes={"sql": "eurollm", "kicad": "base"}), [KICAD, SQL])
    assert routes.steps(routes.destination("sql"))[0] == Step(("eurollm",), None, "EuroLLM")
    assert routes.destination("kicad") == Destination("base")
    assert routes.destination("kicad-pcb").name == "mascarade-kicad"


def test_the_fallback_is_the_last_way() -> None:
    upstream = [{"name": "eurollm", "url": "http://h/v1", "model": "EuroLLM"}]
    routes = build_routes(config(upstream=upstream, policy={"fallback": "eurollm"}), [KICAD])
    assert routes.steps(routes.destination("kicad"))[-1] == Step(("eurollm",), None, "EuroLLM")
    assert routes.fallback == Destination("upstream", "eurollm")


def test_an_unlisted_adapter_lives_where_its_manifest_says_only_if_that_server_lists_none() -> None:
    listed = build_routes(config(), [KICAD, AdapterEntry(name="new", domains=("emc",), specialist="hardware")])
    assert "new" not in listed.hosts
    assert listed.steps(listed.destination("emc")) == (Step(("hardware", "code"), None, "base"),)
    open_server = build_routes(config(specialist=[{"name": "hardware", "port": 1}]), [KICAD])
    assert open_server.hosts == {"mascarade-kicad": ("hardware",)}


def test_routes_that_lead_nowhere_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_routes(config(routes={"sql": "mascarade-sqll", "kicad": "?"}, policy={"fallback": "bsae"}), [KICAD, SQL])
    message = str(caught.value)
    assert "routes.sql = 'mascarade-sqll'" in message
    assert "did you mean 'mascarade-sql'?" in message
    assert "routes.kicad" in message
    assert "policy.fallback = 'bsae'" in message
    assert "did you mean 'base'?" in message


def test_without_servers_there_is_no_way() -> None:
    routes = build_routes(config(specialist=[]), [KICAD])
    assert routes.steps(routes.destination("kicad")) == ()

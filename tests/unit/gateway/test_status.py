"""What clients may see of an endpoint: names, and no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_router.gateway.status import base_name, endpoint_status, redact
from mlx_router.gateway.upstreams import Endpoint


def gateway(home: str) -> Any:
    return SimpleNamespace(setup=SimpleNamespace(config=SimpleNamespace(home=Path(home))))


@pytest.mark.parametrize(
    ("base", "name"), [("/models/qwen-4bit", "qwen-4bit"), ("mlx-community/Qwen-4bit", "mlx-community/Qwen-4bit")]
)
def test_a_folder_is_named_by_its_last_part(base: str, name: str) -> None:
    assert base_name(base) == name


def test_a_specialist_is_shown_without_places() -> None:
    home = "/home/ada/.mlx-router"
    endpoint = Endpoint(key="a", pool="a", kind="specialist", url="http://h", reason=f"engine: no {home}/base")
    endpoint.details = {
        "base": {"id": "/models/qwen", "path": "/models/qwen", "digest": "sha256:0"},
        "data": [{"id": "sql", "state": "quarantined", "path": f"{home}/x", "reason": "/home/ada/x is spoilt"}],
    }
    found = endpoint_status(gateway(home), endpoint)
    assert found["reason"] == "engine: no $MLX_ROUTER_HOME/base"
    assert found["base"] == {"id": "qwen", "digest": "sha256:0"}
    assert found["adapters"] == [{"id": "sql", "state": "quarantined", "reason": "~/x is spoilt"}]
    assert "/home/ada" not in json.dumps(found)


def test_a_home_below_the_root_leaves_slashes_alone() -> None:
    assert redact(gateway("/mlx"), "/mlx/router is not /data") == "$MLX_ROUTER_HOME/router is not /data"

"""What the page, `mlx-router status` and a supervisor want to know: readiness, state, models. Plain data out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_router import __version__
from mlx_router.artifacts.store import RouterStore
from mlx_router.gateway.metrics import peak_bytes
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.upstreams import USABLE, Endpoint
from mlx_router.protocol.chunks import model_entry

AUTO_MODEL = "ailiance/auto"
EMBEDDING_MODEL = "all-MiniLM-L6-v2"
_PLACES = frozenset({"path", "log", "config", "home", "command"})  # keys that hold paths
_STATE_BYTES = 2**20  # of run/status.json at most


def redact(gateway: Gateway, text: str) -> str:
    """A message for a client: no path of this machine."""
    home = gateway.setup.config.home
    text = text.replace(str(home), "$MLX_ROUTER_HOME")
    return text if home.parent == Path(home.anchor) else text.replace(str(home.parent), "~")


def readiness(gateway: Gateway) -> tuple[bool, dict[str, Any]]:
    """Whether requests can be routed and answered, and the state of every part."""
    router = gateway.router.status
    parts: dict[str, Any] = {
        "router": {
            "ready": router.ready,
            "reason": redact(gateway, router.error) or None,
            "version": router.version or None,
            "notice": redact(gateway, router.notice) or None,
        }
    }
    fleet = gateway.setup.fleet
    for endpoint in fleet:
        part = parts.setdefault(endpoint.pool, {"ready": False, "reason": None, "kind": endpoint.kind})
        part["ready"] = part["ready"] or endpoint.state == "up"
        part["reason"] = None if part["ready"] else redact(gateway, endpoint.reason)
    if gateway.config_error:
        parts["config"] = {"ready": True, "reason": None, "notice": redact(gateway, gateway.config_error)}
    if gateway.draining:
        parts["gateway"] = {"ready": False, "reason": "draining"}
    ready = router.ready and not gateway.draining and (fleet.any_up() or not list(fleet))
    return ready, {"ready": ready, "parts": parts}


def status(gateway: Gateway) -> dict[str, Any]:
    """Everything at a glance, for GET /v1/status."""
    setup = gateway.setup
    median_s = gateway.median_s()
    ready, parts = readiness(gateway)
    specialists = [endpoint_status(gateway, item) for item in setup.fleet if item.kind == "specialist"]
    upstreams = [endpoint_status(gateway, item) for item in setup.fleet if item.kind == "upstream"]
    return {
        "ready": ready,
        "parts": parts["parts"],
        "gateway": {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - gateway.started_at, 1),
            "requests": gateway.metrics.total,
            "requests_per_s": round(gateway.rate(), 2),
            "p50_ms": None if median_s is None else round(median_s * 1e3, 2),
            "active": gateway.active,
            "memory_peak_bytes": peak_bytes(),
            "conversations": len(gateway.conversations),
            "config_loaded_at": round(gateway.config_loaded_at, 3),
            "config_error": redact(gateway, gateway.config_error) or None,
            "log_error": gateway.log.error or None,
            "keys_required": setup.guard.has_keys,
            "admin_token_required": bool(setup.config.security.admin_token),
        },
        "router": router_status(gateway),
        "specialists": specialists,
        "upstreams": upstreams,
        "routes": {
            domain: {"kind": target.kind, "name": target.name}
            for domain, target in sorted(setup.routes.by_domain.items())
        },
        "processes": processes(gateway),
    }


def router_status(gateway: Gateway) -> dict[str, Any]:
    """The active version with its metrics, and the versions there are."""
    router = gateway.router.status
    store = RouterStore(gateway.setup.config.home)
    try:
        versions, current = store.versions(), store.current()
    except OSError:
        versions, current = [], None
    return {
        "ready": router.ready,
        "version": router.version or None,
        "notice": redact(gateway, router.notice) or None,
        "reason": redact(gateway, router.error) or None,
        "loaded_at": round(router.loaded_at, 3) or None,
        "domains": len(router.labels),
        "labels": list(router.labels),
        "thresholds": router.meta.get("thresholds") or {},
        "out_of_domain": router.meta.get("out_of_domain"),
        "fallback": router.meta.get("fallback"),
        "fallback_share": router.meta.get("fallback_share"),
        "min_score": dict(gateway.setup.config.policy.min_score),
        "metrics": router.meta.get("metrics") or {},
        "current": current,
        "versions": versions,
        "cache": {
            "entries": gateway.router.cached,
            "hits": gateway.router.hits,
            "misses": gateway.router.misses,
        },
        "queue": gateway.router.depth,
        "encode_p50_ms": round(gateway.metrics.encode.quantile(0.5) * 1e3, 3),
    }


def endpoint_status(gateway: Gateway, endpoint: Endpoint) -> dict[str, Any]:
    """One endpoint; specialists with their bank and adapters."""
    state: dict[str, Any] = {
        "name": endpoint.pool,
        "url": endpoint.url,
        "state": endpoint.state,
        "reason": redact(gateway, endpoint.reason) or None,
        "checked_at": round(endpoint.checked_at, 3),
        "in_flight": endpoint.in_flight,
        "queue": {
            "waiting": endpoint.waiting,
            "running": endpoint.running,
            "limit": endpoint.queue_limit or None,
        },
        "served": endpoint.served,
        "failed": endpoint.failed,
    }
    if endpoint.kind == "specialist":
        base = endpoint.details.get("base")
        state["base"] = _base_status(gateway, base) if isinstance(base, Mapping) else None
        state["bank"] = endpoint.details.get("bank")
        state["adapters"] = [
            without_places(gateway, item) for item in _list(endpoint.details.get("data")) if isinstance(item, dict)
        ]
    else:
        state["model"] = endpoint.model
    return state


def base_name(base: str) -> str:
    """A base as clients may see it: its name on the hub, or the last part of its folder."""
    return Path(base).name if Path(base).is_absolute() else base


def _base_status(gateway: Gateway, base: Mapping[str, Any]) -> Any:
    name = base.get("id")
    return without_places(gateway, {**base, "id": base_name(name) if isinstance(name, str) else None})


def processes(gateway: Gateway) -> Any:
    """What the supervisor last wrote about its children, without places on this machine; None where none runs."""
    path = gateway.setup.config.home / "run" / "status.json"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_STATE_BYTES))
    except (OSError, ValueError):
        return None
    return without_places(gateway, found)


def without_places(gateway: Gateway, value: Any) -> Any:
    """JSON for a client: no keys that hold paths, no path of this machine in its texts."""
    if isinstance(value, dict):
        return {key: without_places(gateway, item) for key, item in value.items() if key not in _PLACES}
    if isinstance(value, list):
        return [without_places(gateway, item) for item in value]
    return redact(gateway, value) if isinstance(value, str) else value


def models(gateway: Gateway) -> list[dict[str, Any]]:
    """What `model` may be, domains left out: they are in GET /v1/status."""
    setup = gateway.setup
    created = int(gateway.started_at)

    found = [model_entry(AUTO_MODEL, created=created)]
    base = next((base_name(item.base_id) for item in setup.fleet if item.base_id), "base")
    if setup.routes.bases:
        found.append(model_entry("base", created=created, root=base))
    served: dict[str, str] = {}
    for endpoint in setup.fleet:
        for name, state in endpoint.adapters.items():
            if state in USABLE:
                served.setdefault(name, endpoint.pool)
    for name, pool in sorted(served.items()):
        found.append({**model_entry(name, created=created, parent="base"), "specialist": pool})
    for other in setup.routes.pools.values():
        if other.kind == "upstream":
            found.append(model_entry(other.name, created=created, root=other.model))
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

"""The places that answer: their health, their load, and which of them takes the next request.

    unknown --probe ok--> up --probe fails, connection refused or cut--> down --probe ok--> up

`full` is not a state but a matter of moments: an endpoint that said 429, or whose queue is at its limit, is
passed over until the next probe or until it told us to come back. Everything here runs on the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlx_router.config import Config
from mlx_router.gateway.routes import Step

State = Literal["unknown", "up", "down"]
_STATES = ("resident", "available", "quarantined", "unloaded", "missing")  # best first
USABLE = frozenset({"resident", "available"})  # states of an adapter on a specialist

# What it costs, in waiting requests, to go elsewhere.
_LOAD_COST = 3.0  # the adapter must be loaded first
_MOVE_COST = 4.0  # the conversation's cache is somewhere else


@dataclass(slots=True, kw_only=True, eq=False)
class Endpoint:
    """One server. `url` has no trailing slash and no /v1."""

    key: str  # pool and url
    pool: str
    kind: Literal["specialist", "upstream"]
    url: str
    model: str = "base"
    api_key: str = ""
    max_concurrent: int = 0  # requests that we send it at once; 0: no bound

    state: State = "unknown"
    reason: str = "not probed yet"
    checked_at: float = 0.0  # time.time() of the last probe
    in_flight: int = 0
    waiting: int = 0  # as last reported
    running: int = 0
    queue_limit: int = 0
    elsewhere: int = 0  # reported requests that were not ours
    full_until: float = 0.0  # time.monotonic()
    adapters: Mapping[str, str] = field(default_factory=dict)  # name -> resident, available or quarantined
    adapters_known: bool = False
    details: Mapping[str, object] = field(default_factory=dict)  # GET /v1/adapters, for the page
    base_id: str = ""
    served: int = 0
    failed: int = 0
    turn: int = 0  # number of the fleet's last request that went here; equal endpoints take turns

    @property
    def load(self) -> int:
        """Requests that are there now, ours exactly and others' as last reported."""
        return self.in_flight + self.elsewhere

    def refusal(self, adapter: str | None, now: float) -> str:
        """Why this endpoint cannot take a request now; empty if it can."""
        if self.state != "up":
            return f"{self.pool} is {'down' if self.state == 'down' else 'not ready'}: {self.reason}"
        if self.is_full(now):
            return f"{self.pool} is full"
        if self.lacks(adapter):
            return f"adapter {adapter} is {self.adapters.get(adapter or '') or 'not loaded'} on {self.pool}"
        return ""

    def lacks(self, adapter: str | None) -> bool:
        """Whether it is known not to answer with this adapter."""
        return adapter is not None and self.adapters_known and self.adapters.get(adapter) not in USABLE

    def is_full(self, now: float) -> bool:
        """Whether it said so a moment ago, or has as many of our requests as it may get."""
        return now < self.full_until or bool(self.max_concurrent and self.in_flight >= self.max_concurrent)

    def failure(self, reason: str) -> None:
        """A connection failed: no request goes there until a probe says otherwise."""
        self.failed += 1
        self.state, self.reason = "down", reason

    def overloaded(self, retry_after_s: float) -> None:
        """The endpoint said that it is full."""
        self.full_until = time.monotonic() + min(retry_after_s, 30.0)


class Fleet:
    """Every endpoint, by pool."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._pools: dict[str, list[Endpoint]] = {}
        self._turns = 0
        for endpoint in endpoints:
            self._pools.setdefault(endpoint.pool, []).append(endpoint)

    def __iter__(self) -> Iterator[Endpoint]:
        for endpoints in self._pools.values():
            yield from endpoints

    def pool(self, name: str) -> tuple[Endpoint, ...]:
        """The endpoints of one pool."""
        return tuple(self._pools.get(name, ()))

    def pick(
        self, step: Step, *, conversation: str | None = None, tried: frozenset[str] = frozenset()
    ) -> tuple[Endpoint | None, list[str]]:
        """The endpoint for a step, or None and why not.

        Least loaded first; an endpoint where the adapter is resident or the conversation's cache lies is worth a
        few places in the queue. `tried` are keys of endpoints that have failed this request.
        """
        now = time.monotonic()
        best: Endpoint | None = None
        best_cost = 0.0
        reasons: list[str] = []
        for name in step.pools:
            for endpoint in self._pools.get(name, ()):
                if endpoint.key in tried:
                    continue
                if refusal := endpoint.refusal(step.adapter, now):
                    reasons.append(refusal)
                    continue
                cost = float(endpoint.load)
                if step.adapter is not None and endpoint.adapters.get(step.adapter) != "resident":
                    cost += _LOAD_COST
                if conversation is not None and endpoint.key != conversation:
                    cost += _MOVE_COST
                if best is None or (cost, endpoint.turn) < (best_cost, best.turn):
                    best, best_cost = endpoint, cost
        return best, list(dict.fromkeys(reasons))

    def full_for_s(self, steps: Iterable[Step]) -> float | None:
        """Seconds until an endpoint of these steps may have room; None unless being full is all that is wrong."""
        now = time.monotonic()
        asked = [(step, endpoint) for step in steps for name in step.pools for endpoint in self._pools.get(name, ())]
        if not asked or any(
            endpoint.state != "up" or not endpoint.is_full(now) or endpoint.lacks(step.adapter)
            for step, endpoint in asked
        ):
            return None
        return max(0.0, min(endpoint.full_until for _, endpoint in asked) - now)

    def take(self, endpoint: Endpoint) -> None:
        """A request goes to this endpoint."""
        self._turns += 1
        endpoint.turn = self._turns
        endpoint.served += 1

    def adapter_state(self, name: str) -> str:
        """The best state of an adapter anywhere, as specialists report it; empty where nobody knows it."""
        states = {endpoint.adapters.get(name, "") for endpoint in self}
        return next((state for state in _STATES if state in states), "")

    def any_up(self) -> bool:
        """Whether some endpoint can answer."""
        return any(endpoint.state == "up" for endpoint in self)


def build_fleet(config: Config, old: Fleet | None = None) -> Fleet:
    """The endpoints that a configuration names; those that were there before keep their state and counts."""
    known = {endpoint.key: endpoint for endpoint in old or ()}
    endpoints: list[Endpoint] = []

    def add(endpoint: Endpoint) -> None:
        kept = known.get(endpoint.key)
        if kept is not None:
            kept.model, kept.api_key, kept.max_concurrent = (
                endpoint.model,
                endpoint.api_key,
                endpoint.max_concurrent,
            )
            endpoint = kept
        endpoints.append(endpoint)

    for item in config.specialists:
        for url in (f"http://{_reachable(item.host)}:{item.port}", *item.replicas):
            url = root_of(url)
            add(Endpoint(key=f"{item.name} {url}", pool=item.name, kind="specialist", url=url))
    for upstream in config.upstreams:
        url = root_of(upstream.url)
        add(
            Endpoint(
                key=f"{upstream.name} {url}",
                pool=upstream.name,
                kind="upstream",
                url=url,
                model=upstream.model,
                api_key=upstream.api_key,
                max_concurrent=upstream.max_concurrent,
            )
        )
    return Fleet(endpoints)


def root_of(url: str) -> str:
    """`http://host:1/v1/` -> `http://host:1`."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _reachable(host: str) -> str:
    """The address to connect to for a server bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host

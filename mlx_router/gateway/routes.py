"""Which domain is answered where: manifests and `[routes]` joined into one table. Pure, plain data in and out.

domain -> Destination(adapter | upstream | base) -> Steps, tried in order until one has a place that can answer
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlx_router.config import Config
from mlx_router.errors import ConfigError

AUTO = frozenset({"ailiance/auto", "auto"})
BASE = "base"
ACTIVE = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry:
    """What the gateway has to know of an adapter's manifest."""

    name: str
    domains: tuple[str, ...]
    specialist: str = ""  # where it lives unless a [[specialist]] lists it
    status: str = ACTIVE  # active, missing or quarantined
    reason: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a domain is answered: an adapter's or an upstream's name, or the base."""

    kind: Literal["adapter", "upstream", "base"]
    name: str = BASE


@dataclass(frozen=True, slots=True)
class Step:
    """One way to answer: any endpoint of these pools, under this model name."""

    pools: tuple[str, ...]
    adapter: str | None  # None: the base, or an upstream's own model
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Endpoints that serve the same thing, and what it can take."""

    name: str
    kind: Literal["specialist", "upstream"]
    model: str = BASE
    tools: bool = True
    images: bool = False
    max_context: int = 0  # tokens; 0: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """The table in force; built anew on every reload, never changed."""

    by_domain: Mapping[str, Destination]
    adapters: Mapping[str, AdapterEntry]
    hosts: Mapping[str, tuple[str, ...]]  # adapter -> specialists that serve it
    pools: Mapping[str, Pool]
    fallback: Destination
    bases: tuple[str, ...]  # every specialist
    _steps: dict[Destination, tuple[Step, ...]] = field(default_factory=dict, compare=False)

    def destination(self, domain: str) -> Destination:
        """Where a domain goes; a domain that nothing names goes to the base."""
        return self.by_domain.get(domain, _BASE_DESTINATION)

    def steps(self, destination: Destination) -> tuple[Step, ...]:
        """The ways to answer, in order: the destination, the base of its specialist, any base, the fallback."""
        known = self._steps.get(destination)
        if known is None:
            known = self._steps[destination] = tuple(dict.fromkeys(self._build_steps(destination)))
        return known

    def _build_steps(self, destination: Destination) -> Iterable[Step]:
        hosts: tuple[str, ...] = ()
        if destination.kind == "adapter":
            hosts = self.hosts.get(destination.name, ())
            if hosts:
                yield Step(hosts, destination.name, destination.name)
        elif destination.kind == "upstream":
            yield Step((destination.name,), None, self.pools[destination.name].model)
        if hosts:
            yield Step(hosts, None, BASE)
        if self.bases:
            yield Step(self.bases, None, BASE)
        if self.fallback != destination and self.fallback.kind == "upstream":
            yield Step((self.fallback.name,), None, self.pools[self.fallback.name].model)

    def domain_of(self, adapter: str) -> str:
        """The first domain of an adapter, for requests that name it."""
        entry = self.adapters.get(adapter)
        return entry.domains[0] if entry and entry.domains else "general"


_BASE_DESTINATION = Destination("base")


def build_routes(config: Config, adapters: Iterable[AdapterEntry]) -> Routes:
    """Join configuration and manifests; ConfigError names every route that leads nowhere."""
    entries = {entry.name: entry for entry in adapters}
    pools = _pools(config)
    hosts = _hosts(config, entries)
    problems: list[str] = []
    by_domain: dict[str, Destination] = {}
    for entry in entries.values():
        for domain in entry.domains:
            by_domain[domain] = Destination("adapter", entry.name)

    def destination(name: str, where: str) -> Destination:
        if name == BASE:
            return _BASE_DESTINATION
        if name in entries or name in hosts:
            return Destination("adapter", name)
        if name in pools and pools[name].kind == "upstream":
            return Destination("upstream", name)
        near = difflib.get_close_matches(name, [BASE, *entries, *hosts, *pools], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        problems.append(f"{where} = {name!r} is no adapter, upstream or 'base'{hint}")
        return _BASE_DESTINATION

    for domain, name in config.routes.items():
        by_domain[domain] = destination(name, f"routes.{domain}")
    fallback = destination(config.policy.fallback, "policy.fallback")
    if problems:
        raise ConfigError.from_problems("routes that lead nowhere", problems)
    bases = tuple(pool.name for pool in pools.values() if pool.kind == "specialist")
    return Routes(by_domain=by_domain, adapters=entries, hosts=hosts, pools=pools, fallback=fallback, bases=bases)


def _pools(config: Config) -> dict[str, Pool]:
    pools = {
        item.name: Pool(name=item.name, kind="specialist", max_context=item.max_context) for item in config.specialists
    }
    for item in config.upstreams:
        pools[item.name] = Pool(
            name=item.name,
            kind="upstream",
            model=item.model,
            tools=item.tools,
            images=item.images,
            max_context=item.max_context,
        )
    return pools


def _hosts(config: Config, entries: Mapping[str, AdapterEntry]) -> dict[str, tuple[str, ...]]:
    """Specialists per adapter: those that list it; a manifest's own choice where none does and it lists nothing."""
    hosts: dict[str, list[str]] = {}
    for item in config.specialists:
        for name in item.adapters:
            hosts.setdefault(name, []).append(item.name)
    open_hosts = {item.name for item in config.specialists if not item.adapters}
    for entry in entries.values():
        if entry.name not in hosts and entry.specialist in open_hosts:
            hosts[entry.name] = [entry.specialist]
    return {name: tuple(places) for name, places in hosts.items()}

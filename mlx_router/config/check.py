"""What no single value shows: ports that clash, names used twice, routes that lead nowhere."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_router.config.keys import read_api_keys
from mlx_router.config.lines import Path
from mlx_router.config.parse import Problems, suggest
from mlx_router.config.schema import Config
from mlx_router.errors import ConfigError

BASE = "base"
RESERVED = frozenset({BASE, "auto", "ailiance", "gateway", "serve"})  # would be ambiguous as a model or a log's name
_ANYWHERE = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Names that manifests, installed adapters and router versions give; a file may refer to them."""

    adapters: frozenset[str]
    domains: frozenset[str]


def check(config: Config, problems: Problems, known: Known | None) -> tuple[str, ...]:
    """Note what cannot work; return what works and is probably not meant.

    Names are looked up, and keys read, only where names are known: for what is going to serve.
    """
    _names(config, problems)
    _ports(config, problems)
    _specialists(config, problems)
    if not is_loopback(config.gateway.host) and not (config.security.api_keys or config.security.api_keys_file):
        _exposed(config, problems, "set security.api_keys_file or security.api_keys first")
    if known is None:
        return ()
    _keys(config, problems)
    return _references(config, problems, known)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _exposed(config: Config, problems: Problems, why: str) -> None:
    problems.add(("gateway", "host"), f"gateway.host = {config.gateway.host!r} is reachable from other machines: {why}")


def _keys(config: Config, problems: Problems) -> None:
    if config.security.api_keys_file is None:
        return
    try:
        keys = read_api_keys(config.security)
    except ConfigError as error:
        problems.add(("security", "api_keys_file"), error.message)
        return
    if not keys and not is_loopback(config.gateway.host):
        _exposed(config, problems, "security.api_keys_file holds no key")


def _names(config: Config, problems: Problems) -> None:
    seen: dict[str, str] = {}
    places: list[tuple[Path, str]] = [
        (("specialist", i, "name"), item.name) for i, item in enumerate(config.specialists)
    ]
    places += [(("upstream", i, "name"), item.name) for i, item in enumerate(config.upstreams)]
    for path, name in places:
        where = f"{path[0]} {name!r}"
        if name in RESERVED:
            problems.add(path, f"{where}: this name has a meaning of its own, choose another")
        elif name in seen:
            problems.add(path, f"{where}: the name is already taken by a {seen[name]}")
        else:
            seen[name] = str(path[0])


def _ports(config: Config, problems: Problems) -> None:
    taken: list[tuple[str, int, str]] = []
    places: list[tuple[Path, str, str, int]] = [
        (("gateway", "port"), "gateway", config.gateway.host, config.gateway.port)
    ]
    places += [
        (("specialist", i, "port"), f"specialist {item.name!r}", item.host, item.port)
        for i, item in enumerate(config.specialists)
    ]
    for path, owner, host, port in places:
        other = next((who for at, number, who in taken if number == port and _overlap(at, host)), None)
        if port and other is not None:
            problems.add(path, f"{owner}: port {port} is already taken by {other}")
        taken.append((host, port, owner))


def _overlap(one: str, other: str) -> bool:
    return one == other or bool({one, other} & _ANYWHERE) or {one, other} == {"localhost", "127.0.0.1"}


def _specialists(config: Config, problems: Problems) -> None:
    for index, item in enumerate(config.specialists):
        path: Path = ("specialist", index, "pinned")
        if len(item.pinned) > item.slots:
            problems.add(path, f"specialist {item.name!r} pins {len(item.pinned)} adapters, and has {item.slots} slots")
        for position, name in enumerate(item.pinned):
            if item.adapters and name not in item.adapters:
                hint = suggest(name, item.adapters)
                problems.add(
                    (*path, position), f"specialist {item.name!r} pins {name!r}, which is not among its adapters{hint}"
                )
        if item.default_max_tokens > item.max_context:
            problems.add(
                ("specialist", index, "default_max_tokens"),
                f"specialist {item.name!r}: default_max_tokens {item.default_max_tokens} is over"
                f" max_context {item.max_context}",
            )


def _references(config: Config, problems: Problems, known: Known) -> tuple[str, ...]:
    listed = {name for item in config.specialists for name in (*item.adapters, *item.pinned)}
    upstreams = {item.name for item in config.upstreams}
    adapters = known.adapters | listed
    targets = {BASE} | adapters | upstreams

    def target(path: Path, name: str, where: str) -> None:
        if name not in targets:
            problems.add(path, f"{where} = {name!r} is no adapter, upstream or 'base'{suggest(name, targets)}")

    for domain, name in config.routes.items():
        target(("routes", domain), name, f"routes.{domain}")
        _domain(("routes", domain), domain, "routes", problems, known.domains)
    for domain in config.policy.min_score:
        _domain(("policy", "min_score", domain), domain, "policy.min_score", problems, known.domains)
    target(("policy", "fallback"), config.policy.fallback, "policy.fallback")
    return tuple(
        f"adapter {name!r} of specialist {item.name!r} has no manifest and is not installed"
        f"{suggest(name, known.adapters)}"
        for item in config.specialists
        for name in item.adapters
        if name not in known.adapters
    )


def _domain(path: Path, name: str, where: str, problems: Problems, domains: Iterable[str]) -> None:
    if name not in domains:
        problems.add(path, f"{where}: {name!r} is no domain{suggest(name, domains)}")

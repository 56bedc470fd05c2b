"""Which processes a configuration amounts to, as plain data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlx_router.config import Config, SpecialistConfig
from mlx_router.config.environment import child_environment

GATEWAY = "gateway"
LIVE = frozenset({"adapters", "pinned", "replicas"})  # a running specialist, or the gateway, follows these

# Read by glibc alone, when the process starts: encoding batches of many sizes leaves it 209 MB instead of 251.
GATEWAY_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "4000000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One process: how it is started, where it listens, how long it may take to leave."""

    name: str
    kind: Literal["gateway", "specialist"]
    argv: tuple[str, ...]
    host: str
    port: int
    drain_s: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    settings: object = None  # what it was started with: another value needs another start

    @property
    def url(self) -> str:
        """Where it is asked for its health: an address that stands for all of them is asked on loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def child_specs(config: Config, parent_pid: int, ports: Mapping[str, int]) -> list[ChildSpec]:
    """Specialists first, then the gateway: it is ready when one of them is.

    Args:
        ports: by child, where they are not those that the file gives.
    """
    common = ["--home", str(config.home)]
    if config.path is not None:
        common += ["--config", str(config.path)]
    start = (sys.executable, "-m", "mlx_router", *common)
    parent = ("--parent-pid", str(parent_pid))
    environment = child_environment(ports)
    specs = [
        ChildSpec(
            name=item.name,
            kind="specialist",
            argv=(*start, "specialist", item.name, *parent),
            host=item.host,
            port=item.port,
            drain_s=item.drain_s,
            environment=environment,
            settings=(_fixed(item), config.security, config.adapter_roots),
        )
        for item in config.specialists
    ]
    gateway = config.gateway
    specs.append(
        ChildSpec(
            name=GATEWAY,
            kind="gateway",
            argv=(*start, "gateway", *parent),
            host=gateway.host,
            port=gateway.port,
            drain_s=gateway.drain_timeout_s,
            environment=GATEWAY_MALLOC | environment,
            settings=(gateway.host, gateway.port, config.encoder),
        )
    )
    return specs


def _fixed(item: SpecialistConfig) -> tuple[object, ...]:
    """Settings that only a new process takes up."""
    return tuple(getattr(item, field.name) for field in dataclasses.fields(item) if field.name not in LIVE)

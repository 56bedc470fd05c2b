"""The only reader of the environment.

MLX_ROUTER_HOME          versions, adapters, logs (default ~/.mlx-router)
MLX_ROUTER_PORTS         "gateway=9400,hardware=9460": ports in place of those of the file, for the names that it has
MLX_ROUTER_API_KEYS      comma-separated, beside those of the file
MLX_ROUTER_ADMIN_TOKEN   in place of security.admin_token
<api_key_env>            the key of an upstream, under the name that the file gives
"""

from __future__ import annotations

import dataclasses
import getpass
import os
from collections.abc import Mapping
from pathlib import Path

from mlx_router.config.schema import Config
from mlx_router.errors import ConfigError

HOME = "MLX_ROUTER_HOME"
PORTS = "MLX_ROUTER_PORTS"
API_KEYS = "MLX_ROUTER_API_KEYS"
ADMIN_TOKEN = "MLX_ROUTER_ADMIN_TOKEN"
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # mlx.launch's ring, Open MPI, MPICH


def home_dir(explicit: str | Path | None = None) -> Path:
    """`--home`, else `$MLX_ROUTER_HOME`, else `~/.mlx-router`."""
    return Path(explicit or os.environ.get(HOME) or Path.home() / ".mlx-router").expanduser().resolve()


def launched_rank() -> int | None:
    """This process's rank under `mlx.launch` or `mpirun`; None where it was started alone."""
    for name in _RANKS:
        if (value := os.environ.get(name, "")).isdigit():
            return int(value)
    return None


def child_environment(ports: Mapping[str, int]) -> dict[str, str]:
    """Our environment for a process that we start, with these ports in place of those that it gives."""
    own = dict(os.environ)
    if merged := {**_read_ports(own.pop(PORTS, "")), **ports}:
        own[PORTS] = ",".join(f"{name}={port}" for name, port in merged.items())
    return own | {"PYTHONUNBUFFERED": "1"}


def hub_cache() -> Path:
    """Where the model hub's client keeps what it has downloaded."""
    if explicit := os.environ.get("HF_HUB_CACHE"):
        return Path(explicit).expanduser()
    root = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(root).expanduser() / "hub"


def search_path() -> str:
    """$PATH, for a service that starts outside of a shell."""
    return os.environ.get("PATH", os.defpath)


def invoking_user() -> str:
    """Who asked: the user behind sudo, else this one."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def service_dirs() -> tuple[Path, Path]:
    """Where a user's launchd agents and systemd units are written."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path.home() / "Library" / "LaunchAgents", Path(config).expanduser() / "systemd" / "user"


def apply_environment(config: Config, ports: Mapping[str, int] | None = None) -> Config:
    """`config` with what the environment adds. Raises ConfigError.

    Args:
        ports: take precedence over $MLX_ROUTER_PORTS, for the names that are configured too.
    """
    environ = os.environ
    security = config.security
    keys = tuple(key.strip() for key in environ.get(API_KEYS, "").split(",") if key.strip())
    security = dataclasses.replace(
        security,
        api_keys=tuple(dict.fromkeys((*security.api_keys, *keys))),
        admin_token=environ.get(ADMIN_TOKEN) or security.admin_token,
    )
    upstreams = tuple(
        dataclasses.replace(item, api_key=environ.get(item.api_key_env, "")) if item.api_key_env else item
        for item in config.upstreams
    )
    notices = tuple(
        f"upstream {item.name!r}: ${item.api_key_env} is not set, requests go out without a key"
        for item in upstreams
        if item.api_key_env and not item.api_key
    )
    config = dataclasses.replace(config, security=security, upstreams=upstreams, notices=config.notices + notices)
    return with_ports(config, {**_read_ports(environ.get(PORTS, "")), **(ports or {})})


def _read_ports(text: str) -> dict[str, int]:
    ports: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition("=")
        if not number.isdigit() or int(number) > 65535:
            raise ConfigError(f"${PORTS}: {item!r} is not of the form name=port, ports up to 65535")
        ports[name.strip()] = int(number)
    return ports


def with_ports(config: Config, ports: Mapping[str, int]) -> Config:
    """`config` with these ports, by name, in place of its own."""
    gateway = dataclasses.replace(config.gateway, port=ports.get("gateway", config.gateway.port))
    specialists = tuple(dataclasses.replace(item, port=ports.get(item.name, item.port)) for item in config.specialists)
    return dataclasses.replace(config, gateway=gateway, specialists=specialists)

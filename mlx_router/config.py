"""mlx-router.toml and the environment, read into frozen dataclasses; the only reader of os.environ.

Search order: an explicit path, `./mlx-router.toml`, `$MLX_ROUTER_HOME/mlx-router.toml`, built-in defaults.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlx_router.errors import ConfigError

CONFIG_NAME = "mlx-router.toml"
RUNTIMES = ("auto", "mlx", "onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The OpenAI endpoint that routes."""

    host: str = "127.0.0.1"
    port: int = 9300
    body_limit_bytes: int = 16 * 2**20
    header_limit_bytes: int = 32 * 2**10
    max_connections: int = 1024
    max_requests: int = 512  # answered at the same time; more are told to come back
    client_timeout_s: float = 30.0  # for a client to send its request, or to take what waits for it
    drain_timeout_s: float = 30.0  # for running answers after SIGTERM
    probe_interval_s: float = 2.0  # between two looks at an upstream's health
    cache_size: int = 4096  # decisions kept for prompts seen before
    conversations: int = 10_000  # remembered, so that they stay with their specialist
    decisions: int = 500  # kept in memory for the page
    decision_log_bytes: int = 64 * 2**20  # of one file of the decision log
    decision_log_files: int = 5
    connect_timeout_s: float = 2.0  # to an upstream's socket
    first_byte_timeout_s: float = 120.0  # request sent -> first byte of the answer
    idle_timeout_s: float = 60.0  # between two bytes of a stream
    total_timeout_s: float = 900.0  # a whole answer
    log_prompts: bool = False  # prompt text in the decision log
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialistConfig:
    """One process with one resident base model and a bank of adapters."""

    name: str
    port: int
    host: str = "127.0.0.1"
    base: str = "demo"  # a path, a hub name, or the embedded default
    adapters: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()  # loaded at start and never evicted
    replicas: tuple[str, ...] = ()  # further URLs that serve the same base and adapters
    slots: int = 32  # adapters resident at once
    max_rank: int = 16
    bank_bytes: int = 4 * 2**30
    max_batch: int = 32  # rows decoded together
    queue_limit: int = 256
    max_context: int = 32768  # tokens
    prompt_cache_bytes: int = 2 * 2**30
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Any other OpenAI-compatible server."""

    name: str
    url: str
    model: str
    api_key_env: str = ""  # name of the environment variable that holds its key
    api_key: str = ""  # what that variable holds; never printed
    tools: bool = True  # takes tool definitions
    images: bool = False  # takes image parts
    max_context: int = 0  # tokens; 0: unknown
    max_concurrent: int = 0  # requests at once; 0: no bound


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """What happens between a score and a destination."""

    fallback: str = "base"
    max_active: int = 4  # labels selected at most
    min_score: Mapping[str, float] = field(default_factory=dict)  # per domain, over the version's threshold
    stick_margin: float = 0.3  # a conversation moves when another domain leads its own by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Where MiniLM comes from and what runs it."""

    runtime: str = "auto"  # auto, mlx or onnx
    path: Path | None = None  # a directory with model.safetensors and tokenizer.json
    dtype: str = "float32"
    threads: int = 0  # 0: half the cores, at least one


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityConfig:
    """Keys; without them only loopback clients are served."""

    api_keys: tuple[str, ...] = ()
    api_keys_file: Path | None = None
    admin_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a process of ours needs to know."""

    home: Path
    path: Path | None = None  # the file that was read
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    specialists: tuple[SpecialistConfig, ...] = ()
    upstreams: tuple[UpstreamConfig, ...] = ()
    routes: Mapping[str, str] = field(default_factory=dict)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    adapter_roots: tuple[Path, ...] = ()  # directories under which adapters may be loaded


def home_dir(explicit: str | Path | None = None) -> Path:
    """`--home`, else `$MLX_ROUTER_HOME`, else `~/.mlx-router`."""
    return Path(explicit or os.environ.get("MLX_ROUTER_HOME") or Path.home() / ".mlx-router").expanduser().resolve()


def find_config(explicit: str | Path | None, home: Path) -> Path | None:
    """The configuration file in force, or None for built-in defaults."""
    if explicit is not None:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise ConfigError(f"configuration file {path} does not exist")
        return path.resolve()
    for path in (Path(CONFIG_NAME), home / CONFIG_NAME):
        if path.is_file():
            return path.resolve()
    return None


def load_config(path: str | Path | None = None, home: str | Path | None = None) -> Config:
    """Read and validate the configuration; every problem is reported at once."""
    home_path = home_dir(home)
    found = find_config(path, home_path)
    if found is None:
        return Config(home=home_path)
    try:
        raw = tomllib.loads(found.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found}: {error}") from error
    return parse_config(raw, home=home_path, path=found)


def parse_config(raw: Mapping[str, Any], *, home: Path, path: Path | None = None) -> Config:
    """Build a Config from decoded TOML."""
    return Config(
        home=home,
        path=path,
        gateway=_section(GatewayConfig, raw.get("gateway", {})),
        specialists=tuple(_section(SpecialistConfig, item) for item in raw.get("specialist", [])),
        upstreams=tuple(_section(UpstreamConfig, item) for item in raw.get("upstream", [])),
        routes=dict(raw.get("routes", {})),
        policy=_section(PolicyConfig, raw.get("policy", {})),
        encoder=_section(EncoderConfig, raw.get("encoder", {})),
        security=_section(SecurityConfig, raw.get("security", {})),
        adapter_roots=tuple(Path(root).expanduser() for root in raw.get("adapter_roots", [])),
    )


def _section(cls: Any, raw: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ConfigError(f"unknown keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    for key in ("path", "api_keys_file"):
        if values.get(key) is not None:
            values[key] = Path(values[key]).expanduser()
    return cls(**values)

"""Every setting, as frozen dataclasses: the names are those of mlx-router.toml, the comments are an editor's help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mlx_router.config.bounds import (
    Bytes,
    BytesOrNone,
    Choice,
    Count,
    CountOrNone,
    Fraction,
    FromEnvironment,
    Name,
    Origin,
    Port,
    Seconds,
    SecondsOrNone,
    Url,
)

RUNTIMES = ("auto", "mlx", "onnx")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The OpenAI endpoint that routes."""

    host: str = "127.0.0.1"  # another address than loopback needs API keys
    port: Port = 9300
    body_limit_bytes: Bytes = 16 * 2**20
    header_limit_bytes: Bytes = 32 * 2**10
    max_connections: Count = 1024
    max_requests: Count = 512  # answered at the same time; more are told to come back
    client_timeout_s: Seconds = 30.0  # for a client to send its request, or to take what waits for it
    drain_timeout_s: SecondsOrNone = 30.0  # for running answers after SIGTERM
    probe_interval_s: Seconds = 2.0  # between two looks at an upstream's health
    cache_size: CountOrNone = 4096  # decisions kept for prompts seen before
    conversations: CountOrNone = 10_000  # their turns remembered, so that they stay with their specialist
    decisions: CountOrNone = 500  # kept in memory for the page
    decision_log_bytes: Bytes = 64 * 2**20  # of one file of the decision log
    decision_log_files: Count = 5
    connect_timeout_s: Seconds = 2.0  # to an upstream's socket
    first_byte_timeout_s: Seconds = 120.0  # request sent -> first byte of the answer
    idle_timeout_s: Seconds = 60.0  # between two bytes of a stream
    total_timeout_s: Seconds = 900.0  # a whole answer
    log_prompts: bool = False  # prompt text in the decision log
    cors_origins: tuple[Origin, ...] = ()  # pages of other sites that may call


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialistConfig:
    """One process with one resident base model and a bank of adapters."""

    name: Name
    port: Port
    host: str = "127.0.0.1"
    base: str = "demo"  # a path, a hub name, or the embedded default
    adapters: tuple[Name, ...] = ()  # none: those whose manifests name this specialist
    pinned: tuple[Name, ...] = ()  # loaded at start and never evicted
    replicas: tuple[Url, ...] = ()  # further URLs that serve the same base and adapters
    slots: Count = 32  # adapters resident at once
    max_rank: Count = 16
    bank_bytes: Bytes = 4 * 2**30
    max_batch: Count = 32  # rows decoded together
    queue_limit: Count = 256
    max_context: Count = 32768  # tokens
    prompt_cache_bytes: BytesOrNone = 2 * 2**30
    request_timeout_s: Seconds = 600.0
    prefill_step: Count = 512  # tokens of one prompt chunk: running answers wait that long
    default_max_tokens: Count = 2048  # of an answer whose request names no limit
    stall_s: Seconds = 60.0  # without a step, until /health says stalled
    drain_s: SecondsOrNone = 30.0  # for running answers, after SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Any other OpenAI-compatible server."""

    name: Name
    url: Url
    model: str
    api_key_env: str = ""  # name of the environment variable that holds its key
    api_key: Annotated[str, FromEnvironment("name its environment variable in api_key_env")] = field(
        default="", repr=False
    )
    tools: bool = True  # takes tool definitions
    images: bool = False  # takes image parts
    max_context: CountOrNone = 0  # tokens; 0: unknown
    max_concurrent: CountOrNone = 0  # requests at once; 0: no bound


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """What happens between a score and a destination."""

    fallback: str = "base"  # an adapter, an upstream or "base": answers what no domain claims
    max_active: Count = 4  # labels selected at most
    min_score: Mapping[str, Fraction] = field(default_factory=dict)  # per domain, over the version's threshold
    stick_margin: Fraction = 0.3  # a conversation moves when another domain leads its own by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Where MiniLM comes from and what runs it."""

    runtime: Annotated[str, Choice(RUNTIMES)] = "auto"  # auto, mlx or onnx
    path: Path | None = None  # a directory with model.safetensors and tokenizer.json
    dtype: Annotated[str, Choice(DTYPES)] = "float32"
    threads: CountOrNone = 0  # of the onnx runtime; 0: every core


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityConfig:
    """Keys; without them only loopback clients are served."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)  # also from $MLX_ROUTER_API_KEYS, comma-separated
    api_keys_file: Path | None = None  # one key a line; # begins a comment
    admin_token: str = field(default="", repr=False)  # also from $MLX_ROUTER_ADMIN_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """How `serve` keeps its processes alive."""

    probe_interval_s: Seconds = 1.0  # between two looks at a child that is ready
    boot_timeout_s: Seconds = 120.0  # from the start of a process until it listens
    unhealthy_s: Seconds = 30.0  # a child that is not healthy for this long is killed and started again
    backoff_first_s: Seconds = 0.5  # before the first restart; doubled for each one that follows
    backoff_limit_s: Seconds = 30.0  # the longest wait
    give_up_after: Count = 10  # ends in a row without having been ready; then a reload is needed
    settle_s: SecondsOrNone = 60.0  # ready for this long, the next restart is a first one again
    grace_s: SecondsOrNone = 5.0  # after a child's drain time, before it is killed
    log_bytes: Bytes = 16 * 2**20  # of one log file
    log_files: Count = 5
    memory_check: bool = True  # refuse to start what cannot fit in memory


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
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    adapter_roots: tuple[Path, ...] = ()  # directories under which adapters may be loaded
    notices: tuple[str, ...] = ()  # what works, and is probably not meant

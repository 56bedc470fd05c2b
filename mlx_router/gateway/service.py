"""The gateway's parts put together: what lives as long as the process, and what a reload replaces."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from mlx_router.config import Config
from mlx_router.errors import RouterError
from mlx_router.gateway.catalog import adapter_entries
from mlx_router.gateway.clock import Timeouts
from mlx_router.gateway.conversations import Conversations
from mlx_router.gateway.decision_log import DecisionLog
from mlx_router.gateway.forward import Forwarder
from mlx_router.gateway.metrics import Metrics
from mlx_router.gateway.probe import Prober
from mlx_router.gateway.relay import Relay
from mlx_router.gateway.routes import AdapterEntry, Routes, build_routes
from mlx_router.gateway.routing import RouterLike, RouterThread
from mlx_router.gateway.security import Guard
from mlx_router.gateway.upstreams import Fleet, build_fleet
from mlx_router.gateway.wire import WireLimits

log = logging.getLogger(__name__)

POOL_KEEPALIVE_S = 4.0  # below uvicorn's 5 s, so that an idle connection is not used as it closes
_RESTART_FIELDS = ("host", "port", "cors_origins", "cache_size", "conversations", "decisions", "probe_interval_s")

LoadRouter = Callable[[Config], RouterLike]
Catalog = Callable[[Config], list[AdapterEntry]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one configuration amounts to; a reload puts a new one in place in one assignment."""

    config: Config
    routes: Routes
    fleet: Fleet
    guard: Guard


def build_setup(config: Config, catalog: Catalog, old: Fleet | None = None) -> Setup:
    """Raises ConfigError."""
    guard = Guard(config)
    guard.check_bind()
    return Setup(config, build_routes(config, catalog(config)), build_fleet(config, old), guard)


def load_router(config: Config) -> RouterLike:
    """The active router version; mlx or onnx are imported here, on the router's thread."""
    from mlx_router.head.router import Router

    router = Router.load(home=config.home, encoder=config.encoder)
    router.cache_entries = 0  # its thread keeps whole decisions
    return router


class Gateway:
    """State of the process. Everything but the router's own thread runs on the event loop."""

    def __init__(self, config: Config, *, load: LoadRouter = load_router, catalog: Catalog = adapter_entries) -> None:
        """Raises ConfigError; nothing is started."""
        self._catalog = catalog
        self.setup = build_setup(config, catalog)
        gateway = config.gateway
        self.started_at = time.time()
        self.metrics = Metrics()
        self.metrics.gauges = self._gauges
        self.router = RouterThread(lambda: load(self.setup.config), cache_size=gateway.cache_size)
        self.router.on_encode = self._encoded
        self.conversations = Conversations(gateway.conversations)
        self.log = DecisionLog(
            config.home / "log" / "decisions.jsonl",
            max_bytes=gateway.decision_log_bytes,
            files=gateway.decision_log_files,
            keep=gateway.decisions,
        )
        self.limits = WireLimits(
            header_bytes=gateway.header_limit_bytes,
            connections=gateway.max_connections,
            client_timeout_s=gateway.client_timeout_s,
            on_event=self.count,
        )
        self.config_error = ""  # why the last reload was refused
        self.config_loaded_at = time.time()
        self.active = 0  # requests being answered
        self.durations: deque[float] = deque(maxlen=1000)  # seconds, for the median of /v1/status
        self.finished: deque[float] = deque(maxlen=10_000)  # time.monotonic(), for requests a second
        self.draining = False

    async def start(self) -> None:
        """Open what needs the event loop."""
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_KEEPALIVE_S, enable_cleanup_closed=False),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
        )
        config = self.setup.config
        self.prober = Prober(
            self.session,
            interval_s=config.gateway.probe_interval_s,
            credential=self.setup.guard.credential,
        )
        self.relay = Relay(self.session, Timeouts.of(config.gateway))
        self.forwarder = Forwarder(self.relay, self.prober)
        self.prober.watch(self.setup.fleet)
        self.router.start()

    async def stop(self) -> None:
        """Close everything; requests have ended."""
        self.router.stop()
        await self.prober.close()
        await self.session.close()
        await self.log.close()

    def reload(self, read: Callable[[], Config]) -> str:
        """Put a changed configuration into force; the old one stays if it is invalid. Returns why, or nothing."""
        try:
            setup = build_setup(read(), self._catalog, self.setup.fleet)
        except RouterError as error:
            self.config_error = error.message
            self.count("reload_refused")
            log.error("event=reload_refused error=%r", error.message)
            return error.message
        old, gateway = self.setup.config.gateway, setup.config.gateway
        later = [name for name in _RESTART_FIELDS if getattr(old, name) != getattr(gateway, name)]
        self.setup = setup
        self.relay.set_timeouts(Timeouts.of(gateway))
        self.limits.header_bytes = gateway.header_limit_bytes
        self.limits.connections = gateway.max_connections
        self.limits.client_timeout_s = gateway.client_timeout_s
        self.prober.credential = setup.guard.credential
        self.prober.watch(setup.fleet)
        self.config_error = ""
        self.config_loaded_at = time.time()
        self.count("reload")
        log.info("event=reloaded after_restart=%s", ",".join(later) or "nothing")
        return ""

    def count(self, event: str) -> None:
        """Count an incident."""
        self.metrics.events[event] += 1

    def finish(self, seconds: float) -> None:
        """Note that a request has ended."""
        self.metrics.total += 1
        self.durations.append(seconds)
        self.finished.append(time.monotonic())

    def rate(self, window_s: float = 10.0) -> float:
        """Requests a second over the last moments."""
        since = time.monotonic() - window_s
        count = 0
        for moment in reversed(self.finished):
            if moment < since:
                break
            count += 1
        return count / window_s

    def median_s(self) -> float | None:
        """Median duration of the last requests."""
        ordered = sorted(self.durations)
        return ordered[len(ordered) // 2] if ordered else None

    def _encoded(self, seconds: float, prompts: int) -> None:
        self.metrics.encode.observe(seconds)
        self.metrics.batch_prompts += prompts

    def _gauges(self) -> Iterable[tuple[str, str, dict[str, str], float]]:
        router = self.router
        yield "mlx_router_cache_hits", "Prompts answered from the cache", {}, float(router.hits)
        yield "mlx_router_cache_misses", "Prompts that had to be encoded", {}, float(router.misses)
        yield "mlx_router_cache_entries", "Decisions in the cache", {}, float(router.cached)
        yield "mlx_router_encoder_queue", "Prompts and texts that are not encoded yet", {}, float(router.depth)
        yield "mlx_router_active_requests", "Requests being answered", {}, float(self.active)
        yield "mlx_router_decisions_lost", "Log lines that could not be written", {}, float(self.log.lost)
        yield "mlx_router_router_ready", "1 when a version is loaded", {}, float(router.status.ready)
        for endpoint in self.setup.fleet:
            labels = {"pool": endpoint.pool, "endpoint": endpoint.url}
            yield "mlx_router_upstream_up", "1 when it can answer", labels, float(endpoint.state == "up")
            yield "mlx_router_upstream_in_flight", "Our requests there", labels, float(endpoint.in_flight)
            yield "mlx_router_upstream_waiting", "Its queue, as reported", labels, float(endpoint.waiting)
            yield "mlx_router_upstream_served", "Requests sent there", labels, float(endpoint.served)
            yield "mlx_router_upstream_failed", "Connections that failed", labels, float(endpoint.failed)
            bank = endpoint.details.get("bank")
            if isinstance(bank, dict):
                yield "mlx_router_bank_bytes", "Memory of its adapter bank", labels, float(bank.get("bytes") or 0)
            resident = sum(state == "resident" for state in endpoint.adapters.values())
            yield "mlx_router_adapters_resident", "Adapters in its bank", labels, float(resident)

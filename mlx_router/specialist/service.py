"""One specialist put together: configuration, engine, names, metrics; what the HTTP routes stand on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mlx_router.config import Config, SpecialistConfig, read_api_keys
from mlx_router.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterQuarantined,
    EngineUnavailable,
    RouterError,
)
from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.load import AdapterFiles
from mlx_router.lora.validate import match
from mlx_router.specialist.catalog import Catalog, Known, Source
from mlx_router.specialist.core import EngineCore, Limits
from mlx_router.specialist.engine import Engine
from mlx_router.specialist.loading import Base, load_base
from mlx_router.specialist.metrics import Metrics
from mlx_router.specialist.prompts import Prompts
from mlx_router.specialist.residents import Installed

log = logging.getLogger(__name__)

T = TypeVar("T")


class Specialist:
    """Everything that one specialist process holds. Make it, then `start` it inside the event loop."""

    def __init__(
        self,
        config: Config,
        settings: SpecialistConfig,
        *,
        known: Iterable[Known] = (),
        locate: Callable[[str], Known | None] = lambda name: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.config = config
        self.settings = settings
        self.started_s = time.monotonic()
        self.created = int(time.time())
        roots = [*config.adapter_roots, config.home / "adapters"]
        self.api_keys = read_api_keys(config.security)
        self.catalog = Catalog([settings.base], known, roots=roots, locate=locate)
        self.engine = Engine(
            load=self._load,
            read=self._read_for_jobs,
            limits=Limits(
                max_rows=settings.max_batch,
                prefill_rows=min(8, settings.max_batch),
                prefill_step=settings.prefill_step,
                prompt_cache_bytes=settings.prompt_cache_bytes,
            ),
            queue_limit=settings.queue_limit,
            stall_s=settings.stall_s,
            prepare=self._pin_configured,
            on_failure=on_failure,
        )
        self._process = psutil.Process()
        self.metrics = Metrics(lambda: (self.engine.snapshot, self.engine.load_factor, self._process.memory_info().rss))
        self._prompts: Prompts | None = None
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._preparing = 0  # jobs whose prompts are with it, or wait for it
        self._changes = asyncio.Lock()  # one adapter change at a time

    def _load(self) -> tuple[Base, AdapterBank]:
        settings = self.settings
        base = load_base(settings.base, self.config.home, max_context=settings.max_context)
        bank = AdapterBank(
            base.model,
            slots=settings.slots + 1,  # the base has slot 0
            max_rank=settings.max_rank,
            budget_bytes=settings.bank_bytes,
        )
        return base, bank

    def _read_for_jobs(self, name: str) -> AdapterFiles:
        """The files of an adapter that requests wait for. Files that cannot be used take no more traffic.

        Clients learn that, and not where the files lie; the reason is in the log and in /v1/adapters.
        """
        path: Path | None = None
        try:
            source = self.catalog.source(name)
            path = source.path
            files = self.catalog.read(source)
            self._check_fit(files)
        except AdapterNotFound as error:
            log.warning("adapter=%s reason=%r", name, error.message)
            raise AdapterNotFound(f"no weights of adapter {name!r} are here", param="model") from error
        except AdapterQuarantined as error:
            raise AdapterQuarantined(f"adapter {name!r} is quarantined", param="model") from error
        except AdapterError as error:
            reason = error.message
            log.error("adapter=%s quarantined=yes reason=%r", name, reason)
            self.engine.post(lambda core: self.catalog.quarantine(name, reason, path))
            raise AdapterQuarantined(f"adapter {name!r} cannot be used ({error.code})", param="model") from error
        return files

    def _check_fit(self, files: AdapterFiles) -> None:
        """Refuse files that do not fit the base before the model thread is asked, which has better things to do."""
        core = self.engine.core
        if core is not None:
            match(files, core.bank.targets, core.bank.max_rank)

    def _pin_configured(self, core: EngineCore) -> None:
        for known in self.catalog.pinned():
            name = known.name
            try:
                core.residents.install(name, self.catalog.read(self.catalog.source(name)), replace=False)
                core.residents.pin(name, True)
            except Exception as error:  # whatever it is, the specialist serves without this adapter
                reason = error.message if isinstance(error, RouterError) else repr(error)
                log.error("adapter=%s pinned=no reason=%r", name, reason)
                self.catalog.quarantine(name, f"it could not be loaded at the start: {reason}", known.path)

    async def stop(self) -> None:
        """End the threads."""
        await self.engine.stop()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of answers: what computes them."""
        base = self.engine.base
        return f"mlx-router-{base.digest[7:19]}" if base is not None else "mlx-router"

    async def tokenize(self, function: Callable[[Prompts], T], *, jobs: int) -> T:
        """Run `function`, which makes so many jobs, on the tokenizer's thread.

        The queue's limit holds here already: raises what `Engine.check_room` raises.
        """
        self.engine.check_room(self._preparing + jobs)
        base = self.engine.base
        if base is None:
            raise EngineUnavailable("the base model is loading", retry_after_s=5.0)
        if self._prompts is None:
            self._prompts = Prompts(
                base,
                default_max_tokens=self.settings.default_max_tokens,
                timeout_s=self.settings.request_timeout_s,
            )
        prompts = self._prompts
        self._preparing += jobs
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, lambda: function(prompts))
        finally:
            self._preparing -= jobs

    # adapters

    async def load_adapter(self, name: str, path: str | None, *, replace: bool) -> dict[str, Any]:
        """Load or replace an adapter while requests run; the reply of the admin endpoint."""
        async with self._changes:
            began = time.perf_counter()
            files = await self._read(lambda: self.catalog.source(name, path or None, fresh=True))
            read_ms = _ms(began)
            checking = time.perf_counter()
            self._check_fit(files)
            check_ms = _ms(checking)
            installed, bank_ms = await self.engine.call(lambda core: self._install(core, name, files, replace=replace))
            total_s = time.perf_counter() - began
            self.metrics.swap.observe(total_s)
            log.info(
                "adapter=%s digest=%s previous=%s ms=%.1f", name, installed.digest, installed.previous, total_s * 1e3
            )
            return {
                "lora_name": name,
                "status": "replaced" if installed.previous is not None else "loaded",
                "digest": installed.digest,
                "previous_digest": installed.previous,
                "ms": {"read": read_ms, "check": check_ms, "bank": bank_ms, "total": round(total_s * 1000, 3)},
            }

    async def _read(self, find: Callable[[], Source]) -> AdapterFiles:
        return await self.engine.read(lambda: self.catalog.read(find()))

    def _install(self, core: EngineCore, name: str, files: AdapterFiles, *, replace: bool) -> tuple[Installed, float]:
        """On the model thread: what it did, and how long running answers waited for it, in ms.

        The catalog changes in the same moment, so that a later eviction cannot bring the old files back.
        """
        began = time.perf_counter()
        installed = core.residents.install(name, files, replace=replace)
        self.catalog.loaded(name, files)
        return installed, _ms(began)

    async def unload_adapter(self, name: str) -> dict[str, Any]:
        """Stop serving an adapter; running requests end as they began."""
        async with self._changes:
            digest = await self.engine.call(lambda core: self._unload(core, name))
            log.info("adapter=%s unloaded digest=%s", name, digest)
            return {"lora_name": name, "status": "unloaded", "digest": digest}

    def _unload(self, core: EngineCore, name: str) -> str | None:
        self.catalog.unloaded(name)
        return core.residents.unload(name)

    async def pin_adapter(self, name: str, pinned: bool) -> dict[str, Any]:
        """Keep an adapter resident, loading it where it is not, or let it be evicted again."""
        async with self._changes:
            if self.catalog.require(name).quarantined is not None and pinned:
                raise AdapterQuarantined(f"adapter {name!r} is quarantined: load it first", param="lora_name")
            if pinned and await self.engine.call(lambda core: core.bank.find(name)) is None:
                files = await self._read(lambda: self.catalog.source(name))
                await self.engine.call(lambda core: self._install(core, name, files, replace=True))
            await self.engine.call(lambda core: core.residents.pin(name, pinned))
            return {"lora_name": name, "pinned": pinned}

    # state

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of GET /health."""
        alive, status, reason = self.engine.health()
        body: dict[str, Any] = {"status": status, "uptime_s": round(time.monotonic() - self.started_s, 1)}
        if reason is not None:
            body["reason"] = reason
        return (200 if alive else 503), body

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and body of GET /ready."""
        ready, reason = self.engine.ready()
        waiting, running = self.engine.load_factor
        snapshot = self.engine.snapshot
        return (200 if ready else 503), {
            "ready": ready,
            "parts": {"engine": {"ready": ready, "reason": reason}},
            "queue": {"waiting": waiting, "running": running, "limit": self.settings.queue_limit},
            "base": self.settings.base,
            "adapters": sorted(snapshot.resident()) if snapshot is not None else [],
        }

    def adapters(self) -> dict[str, Any]:
        """Body of GET /v1/adapters."""
        base, snapshot = self.engine.base, self.engine.snapshot
        bank = snapshot.bank if snapshot is not None else {}
        return {
            "object": "list",
            "base": {
                "id": self.settings.base,
                "digest": base.digest if base is not None else None,
                "path": str(base.path) if base is not None else None,
            },
            "bank": {key: bank.get(key) for key in ("slots", "used", "bytes", "budget_bytes", "max_rank")},
            "data": self.catalog.describe(snapshot),
        }


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)

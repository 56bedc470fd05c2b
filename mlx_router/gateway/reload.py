"""Following what changes on disk: the configuration, installed adapters, the active router version."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from watchfiles import awatch

from mlx_router.config import Config, load_config
from mlx_router.config.known import known_names
from mlx_router.gateway.service import Gateway

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)

_DEBOUNCE_MS = 100
_STEP_MS = 25


class Reloader:
    """Watches until stopped. A reload may also be asked for, as SIGHUP does."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        config = gateway.setup.config
        self._path = config.path
        self._home = config.home

    def start(self) -> None:
        """Begin to watch; directories that are to appear are made."""
        for name in ("router", "adapters"):
            (self._home / name).mkdir(parents=True, exist_ok=True)
        flat = [self._home / "router", *([self._path.parent] if self._path is not None else [])]
        self._tasks = [
            asyncio.create_task(self._watch(flat, recursive=False)),
            asyncio.create_task(self._watch([self._home / "adapters"], recursive=True)),
        ]

    async def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reload(self) -> str:
        """Read the configuration and the manifests again. Returns why that was refused, or nothing."""
        return self._gateway.reload(self._read)

    def _read(self) -> Config:
        return load_config(self._path, self._home, known=known_names(self._home))

    async def _watch(self, folders: list[Path], *, recursive: bool) -> None:
        current = self._home / "router" / "CURRENT"
        watched = {str(current), str(self._path)}
        try:
            async for changes in awatch(
                *folders,
                watch_filter=lambda _, path: recursive or path in watched,
                recursive=recursive,
                stop_event=self._stop,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
            ):
                paths = {path for _, path in changes}
                if recursive or str(self._path) in paths:
                    self.reload()
                if str(current) in paths:
                    await self._gateway.router.reload()
        except Exception:  # a lost watch must not end the server; SIGHUP still works
            log.exception("event=watch_failed")

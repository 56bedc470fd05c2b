"""Everything that `serve` runs: children started, watched, reloaded and stopped together.

SIGTERM, SIGINT     drain: the gateway first, whose answers need the specialists; once more: kill
SIGHUP, file saved  read the configuration again; an invalid one is refused, and the old one stays
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from mlx_router import __version__
from mlx_router.config import Config, read_api_keys
from mlx_router.errors import ConfigError, RouterError
from mlx_router.supervisor import record
from mlx_router.supervisor.adapters import follow_adapters
from mlx_router.supervisor.child import Child
from mlx_router.supervisor.lock import Holder
from mlx_router.supervisor.logfile import RotatingLog
from mlx_router.supervisor.memory import Need, check_memory
from mlx_router.supervisor.probe import Prober
from mlx_router.supervisor.spec import GATEWAY, ChildSpec, child_specs
from mlx_router.supervisor.states import State

RECORD_S = 1.0  # between two records where nothing changes
MEASURE_S = 2.0  # between two readings of /metrics
LOG = "log"
_PARENT_S = 0.5  # between two looks at the parent
_SETTLE_S = 0.2  # a saved file is read when it has been left alone for this long
_EXAMPLE = '{"model": "ailiance/auto", "messages": [{"role": "user", "content": "KiCad: DRC clearance?"}]}'

Specs = Callable[[Config], list[ChildSpec]]


class Supervisor:
    """`read` gives the configuration in force and may raise ConfigError; `say` shows one line to the operator."""

    def __init__(
        self,
        config: Config,
        holder: Holder,
        *,
        read: Callable[[], Config],
        say: Callable[[str], None],
        ports: Mapping[str, int] | None = None,
        specs: Specs | None = None,
        parent_pid: int | None = None,
    ) -> None:
        self.config = config
        self.config_error = ""
        self.children: dict[str, Child] = {}
        self._holder = holder
        self._read = read
        self._say_aloud = say
        self._specs = specs or (lambda config: child_specs(config, os.getpid(), ports or {}))
        self._parent_pid = parent_pid
        self._gauges: dict[str, record.Gauge] = {}
        self._needs: list[Need] = []
        self._started_at = time.time()
        self._config_loaded_at = time.time()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._announced = False
        self._told: dict[str, tuple[State, bool, str]] = {}
        self._record_error = ""
        self._unwatched = ""  # why a saved file is not noticed
        settings = config.supervisor
        self.log = RotatingLog(config.home / LOG / "serve.log", max_bytes=settings.log_bytes, files=settings.log_files)

    async def run(self) -> None:
        """Start everything, keep it alive, stop it when asked. Raises SupervisorError where nothing was started."""
        self._needs = check_memory(self.config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        if self._parent_pid is not None:
            self._follow_parent()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            for spec in self._specs(self.config):
                self._add(spec)
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self._keep_record(),
                    self._measure(),
                    self._follow_reloads(),
                    self._follow_file(),
                )
            ]
            try:
                await self._first_of(self._stop.wait(), *tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._stop_all()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    loop.remove_signal_handler(number)
                self.log.close()

    def say(self, text: str) -> None:
        """One line for the operator and for serve.log."""
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self._say_aloud(text)

    # children

    def _add(self, spec: ChildSpec) -> None:
        settings = self.config.supervisor
        log = RotatingLog(
            self.config.home / LOG / f"{spec.name}.log", max_bytes=settings.log_bytes, files=settings.log_files
        )
        child = Child(spec, settings, log, self._prober(spec), self._on_change)
        self.children[spec.name] = child
        self._gauges[spec.name] = record.Gauge(child)
        child.start()

    def _prober(self, spec: ChildSpec) -> Prober:
        security = self.config.security
        token = security.admin_token
        if not token:
            with contextlib.suppress(ConfigError):  # without a key its figures are not known, and that is all
                token = next(iter(read_api_keys(security)), "")
        return Prober(self._session, spec.url, token)

    async def _remove(self, name: str) -> None:
        child = self.children[name]
        await child.stop()
        child.log.close()
        del self.children[name], self._gauges[name]

    def _on_change(self, child: Child) -> None:
        self._changed.set()
        now = (child.state, child.serving, child.reason)
        if self._told.get(child.spec.name) != now:
            self._told[child.spec.name] = now
            self._tell(child)
        if not self._announced and record.all_ready(self.children.values()):
            self._announced = True
            self._announce()

    def _tell(self, child: Child) -> None:
        text = f"{child.spec.name}: {child.state.value}"
        if child.state is State.READY and child.serving:
            text += f" on {child.spec.url} (process {child.pid}, {time.time() - self._started_at:.1f} s)"
        elif child.state is State.BACKING_OFF and child.next_start is not None:
            text += f", next try in {max(child.next_start - time.time(), 0):.1f} s: {child.reason}"
        elif child.reason:
            text += f": {child.reason}"
        if child.state is State.STARTING and child.reason:  # its steps towards ready are for the record
            self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())
        elif child.state is not State.STOPPED or not self._stop.is_set():
            self.say(text)

    def _announce(self) -> None:
        gateway = self.children[GATEWAY].spec
        self.say(f"ready: {gateway.url}/v1 answers OpenAI's API, {gateway.url}/ is the page")
        self.say("next: mlx-router status   in another terminal, or")
        self.say(f"      curl {gateway.url}/v1/chat/completions -H 'content-type: application/json' -d '{_EXAMPLE}'")
        self.say("Ctrl-C stops after the running answers; again to stop at once")

    # stopping

    def _signalled(self) -> None:
        if self._stop.is_set():
            self.say("killing")
            for child in self.children.values():
                child.kill()
        else:
            self.say("stopping: running answers end first (once more to kill)")
            self._stop.set()

    def _follow_parent(self) -> None:
        """Stop when the process that started us, and wanted that, is gone."""
        if os.getppid() == self._parent_pid:
            asyncio.get_running_loop().call_later(_PARENT_S, self._follow_parent)
        elif not self._stop.is_set():
            self.say(f"stopping: process {self._parent_pid}, which started this, is gone")
            self._stop.set()

    async def _stop_all(self) -> None:
        self._stop.set()
        self._write()
        writer = asyncio.create_task(self._keep_record())
        gateway = [child for name, child in self.children.items() if name == GATEWAY]
        others = [child for name, child in self.children.items() if name != GATEWAY]
        try:
            for group in (gateway, others):
                await asyncio.gather(*(child.stop() for child in group))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for child in self.children.values():
                child.log.close()
        self._write(state="stopped")
        self.say("stopped")

    # the record

    async def _keep_record(self) -> None:
        while True:
            self._changed.clear()
            self._write()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RECORD_S)

    async def _measure(self) -> None:
        while True:
            await asyncio.gather(*(gauge.measure() for gauge in list(self._gauges.values())))
            await asyncio.sleep(min(MEASURE_S, 5 * self.config.supervisor.probe_interval_s))

    def _write(self, state: str | None = None) -> None:
        self._record_error = record.write_record(self.config.home, self.status(state))

    def status(self, state: str | None = None) -> dict[str, Any]:
        """Everything, as plain data."""
        memory = psutil.virtual_memory()
        children = list(self.children.values())
        return {
            **record.holder_fields(self._holder),
            "program": __version__,
            "state": state or record.overall(children, self._stop.is_set()),
            "started_at": round(self._started_at, 3),
            "updated_at": round(time.time(), 3),
            "home": str(self.config.home),
            "config_loaded_at": round(self._config_loaded_at, 3),
            "config_error": self.config_error or None,
            "notices": [*self.config.notices, *([self._unwatched] if self._unwatched else [])],
            "record_error": self._record_error or None,
            "memory": {
                "total_bytes": memory.total,
                "available_bytes": memory.available,
                "needed_bytes": sum(need.total_bytes for need in self._needs),
                "needs": [need.describe() for need in self._needs],
            },
            "children": [gauge.state() for gauge in self._gauges.values()],
        }

    # reloading

    async def _follow_reloads(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self.reload()

    async def _follow_file(self) -> None:
        path = self.config.path
        try:
            if path is not None:
                await self._watch(path)
        except Exception as error:  # OSError, and watchfiles' own: no inotify instances are left, say
            self._unwatched = f"{path} cannot be watched ({error}): only SIGHUP reads it again"
            self.say(f"note: {self._unwatched}")
        await asyncio.Event().wait()

    async def _watch(self, path: Path) -> None:
        from watchfiles import awatch

        async for changes in awatch(path.parent, recursive=False, debounce=int(_SETTLE_S * 1e3), step=50):
            if any(Path(changed) == path for _, changed in changes):
                self._reload_wanted.set()

    async def reload(self) -> None:
        """Put the configuration on disk into force, as far as it is valid and fits."""
        try:
            config = self._read()
            old = {item.name for item in self.config.specialists}
            if {item.name for item in config.specialists} - old:
                added = tuple(item for item in config.specialists if item.name not in old)
                check_memory(dataclasses.replace(config, specialists=added))
        except RouterError as error:
            self.config_error = error.message
            self.say(f"configuration refused, the old one stays: {error.message}")
            self._changed.set()
            return
        before, self.config, self.config_error = self.config, config, ""
        self._config_loaded_at = time.time()
        self.say(f"configuration read again: {config.path or 'built-in defaults'}")
        specs = {spec.name: spec for spec in self._specs(config)}
        await self._replace_changed(specs)
        for child in self.children.values():
            child.prober = self._prober(child.spec)  # keys may be others
            child.retry()
        await follow_adapters(before, config, {name: child.prober for name, child in self.children.items()}, self.say)
        if self.children[GATEWAY].serving:
            self.children[GATEWAY].hang_up()
        for name in set(self.children) - set(specs):
            await self._remove(name)
        self._changed.set()

    async def _replace_changed(self, specs: Mapping[str, ChildSpec]) -> None:
        """Start what is new, start again what only a new process takes up. What is no more is left for later."""
        for name, spec in specs.items():
            child = self.children.get(name)
            if child is None:
                self._add(spec)
            elif child.spec.settings != spec.settings:
                self.say(f"{name}: its settings need a new process")
                await self._remove(name)
                self._add(spec)

    @staticmethod
    async def _first_of(*works: Any) -> None:
        """Until the first has ended; what it raised is raised."""
        tasks = [asyncio.ensure_future(work) for work in works]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks[0].cancel()
        for task in done:
            task.result()

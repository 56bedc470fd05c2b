"""Fake children around the real state machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from mlx_router.config import SupervisorConfig
from mlx_router.supervisor.child import Child
from mlx_router.supervisor.logfile import RotatingLog
from mlx_router.supervisor.probe import Prober
from mlx_router.supervisor.spec import ChildSpec
from mlx_router.supervisor.states import State
from tests.gateway_rig import ROOT, free_port

FAST = SupervisorConfig(
    probe_interval_s=0.05,
    boot_timeout_s=10.0,
    unhealthy_s=0.5,
    backoff_first_s=0.05,
    backoff_limit_s=0.2,
    give_up_after=3,
    grace_s=0.3,
)


@dataclass
class Nursery:
    """Makes children, and ends them."""

    folder: Path
    session: aiohttp.ClientSession
    children: list[Child] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def child(self, *arguments: str, settings: SupervisorConfig = FAST, drain_s: float = 0.2) -> Child:
        port = free_port()
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.fake_child import main; main()"
        argv = (sys.executable, "-S", "-c", code, "--port", str(port), "--folder", str(self.folder), *arguments)
        spec = ChildSpec(name="child", kind="specialist", argv=argv, host="127.0.0.1", port=port, drain_s=drain_s)
        log = RotatingLog(self.folder / "child.log", max_bytes=2**16, files=2)
        child = Child(spec, settings, log, Prober(self.session, spec.url), self.note)
        self.children.append(child)
        return child

    def note(self, child: Child) -> None:
        if not self.states or self.states[-1] is not child.state:
            self.states.append(child.state)
        self.changed.set()

    async def until(self, condition: Callable[[], object], what: str, patience_s: float = 10.0) -> None:
        async with asyncio.timeout(patience_s):
            while not condition():
                self.changed.clear()
                try:
                    await asyncio.wait_for(self.changed.wait(), 0.02)
                except TimeoutError:
                    continue

    async def close(self) -> None:
        for child in self.children:
            child.kill()
            await child.stop()
            child.log.close()


Story = Callable[[Nursery], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], None]:
    """Run a coroutine with a nursery; no child outlives it."""

    def run(story: Story) -> None:
        async def main() -> None:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
                nursery = Nursery(tmp_path, session)
                try:
                    await story(nursery)
                finally:
                    await nursery.close()

        asyncio.run(main())

    return run

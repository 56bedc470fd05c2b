"""A specialist without HTTP: its admin calls, and what it takes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import Overloaded
from mlx_router.specialist.service import Specialist

Scenario = Callable[[Specialist], Awaitable[None]]


@pytest.fixture
def run(scripted_path: Path) -> Callable[..., None]:
    """run(scenario, **settings): the scenario against a specialist that is ready."""

    def run(scenario: Scenario, *, known: Any = (), locate: Any = lambda name: None, **settings: Any) -> None:
        async def main() -> None:
            config = Config(home=scripted_path.parent, adapter_roots=(scripted_path.parent,))
            specialist = Specialist(
                config,
                SpecialistConfig(name="test", port=1, base=str(scripted_path), max_context=2048, **settings),
                known=known,
                locate=locate,
            )
            specialist.engine.start()
            try:
                await until(lambda: specialist.engine.state == "running")
                await scenario(specialist)
            finally:
                await specialist.stop()

        asyncio.run(main())

    return run


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_the_queue_limit_holds_before_prompts_are_read(run: Callable[..., None]) -> None:
    async def scenario(specialist: Specialist) -> None:
        gate = threading.Event()
        read = [asyncio.create_task(specialist.tokenize(lambda prompts: gate.wait(20), jobs=2)) for _ in range(2)]
        await until(lambda: specialist._preparing == 4)
        with pytest.raises(Overloaded):
            await specialist.tokenize(lambda prompts: None, jobs=1)
        gate.set()
        await asyncio.gather(*read)
        await specialist.tokenize(lambda prompts: None, jobs=1)

    run(scenario, queue_limit=2, max_batch=2)

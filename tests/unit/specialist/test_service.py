"""A specialist without HTTP: its admin calls, and what it takes on."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import AdapterQuarantined, ModelNotFound, Overloaded
from mlx_router.lora.load import AdapterFiles, read_adapter
from mlx_router.specialist import catalog as catalog_module
from mlx_router.specialist.catalog import Catalog, Known
from mlx_router.specialist.job import Event, Failed, Finished, Job
from mlx_router.specialist.service import Specialist
from tests import tiny_chat
from tests.waiting import until

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


def state_of(specialist: Specialist, name: str) -> str:
    return str(next(item["state"] for item in specialist.adapters()["data"] if item["id"] == name))


def test_a_pin_ends_no_quarantine(run: Callable[..., None], scripted_path: Path) -> None:
    async def scenario(specialist: Specialist) -> None:
        with pytest.raises(AdapterQuarantined):
            await specialist.pin_adapter("caller", True)
        assert state_of(specialist, "caller") == "quarantined"
        await specialist.pin_adapter("caller", False)

    run(scenario, known=[Known(name="caller", path=scripted_path.parent / "caller", quarantined="it fails")])


def job(name: str, adapter: str) -> Job:
    prompt = (tiny_chat.byte_tokens()[0x0A],)
    return Job(id=name, adapter=adapter, prompt=prompt, max_tokens=8, deadline_s=time.monotonic() + 60)


async def answer(specialist: Specialist, asked: Job) -> list[Event]:
    mail = specialist.engine.submit([asked])
    events: list[Event] = []
    while not mail.tickets[0].ended:
        events += [event for _, event in await mail.take()]
    return events


class Reads:
    """`read_adapter` with a gate before one folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._folder = folder
        self.begun, self.open = threading.Event(), threading.Event()
        monkeypatch.setattr(catalog_module, "read_adapter", self)

    def __call__(self, path: Path, **options: Any) -> AdapterFiles:
        if path == self._folder:
            self.begun.set()
            assert self.open.wait(20)
        return read_adapter(path, **options)


@pytest.fixture
def damaged(scripted_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = scripted_path.parent / tmp_path_factory.mktemp("damaged").name
    tiny_chat.save_starter(folder, "<think>")
    weights = folder / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    return folder


def test_damaged_files_quarantine_what_they_are_the_files_of(
    run: Callable[..., None], scripted_path: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator loads a good version while the damaged one is being read for a request."""
    reads = Reads(monkeypatch, damaged)

    async def scenario(specialist: Specialist) -> None:
        waiting = asyncio.create_task(answer(specialist, job("waits", "thinker")))
        await until(reads.begun.is_set)
        good = read_adapter(scripted_path.parent / "thinker")
        await specialist.engine.call(lambda core: specialist._install(core, "thinker", good, replace=True))
        reads.open.set()
        assert isinstance((await waiting)[-1], Finished)
        await specialist.engine.read(lambda: None)
        await specialist.engine.call(lambda core: None)
        assert state_of(specialist, "thinker") == "resident"
        assert specialist.catalog.resolve("thinker") == "thinker"

    run(scenario, known=[Known(name="thinker", path=damaged)])


def test_damaged_files_take_no_more_traffic(run: Callable[..., None], damaged: Path) -> None:
    async def scenario(specialist: Specialist) -> None:
        end = (await answer(specialist, job("waits", "thinker")))[-1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, AdapterQuarantined)
        assert str(damaged) not in end.error.message
        assert state_of(specialist, "thinker") == "quarantined"
        with pytest.raises(AdapterQuarantined):
            specialist.catalog.resolve("thinker")

    run(scenario, known=[Known(name="thinker", path=damaged)])


def test_a_pinned_adapter_that_cannot_be_read_does_not_keep_the_specialist_from_starting(
    run: Callable[..., None], scripted_path: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **options: Any) -> AdapterFiles:
        if path == damaged:
            raise TypeError("a defect")
        return read_adapter(path, **options)

    monkeypatch.setattr(catalog_module, "read_adapter", read)

    async def scenario(specialist: Specialist) -> None:
        assert state_of(specialist, "bad") == "quarantined"
        assert state_of(specialist, "good") == "resident"

    good = Known(name="good", path=scripted_path.parent / "thinker", pinned=True)
    run(scenario, known=[Known(name="bad", path=damaged, pinned=True), good])


def test_a_request_that_passed_an_unload_brings_nothing_back(run: Callable[..., None], scripted_path: Path) -> None:
    """It was let in before the unload, and comes to the queue after it."""

    async def scenario(specialist: Specialist) -> None:
        await specialist.unload_adapter("thinker")
        end = (await answer(specialist, job("late", "thinker")))[-1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, ModelNotFound)
        assert state_of(specialist, "thinker") == "unloaded"

    run(scenario, known=[Known(name="thinker", path=scripted_path.parent / "thinker")])


def test_requests_are_counted_beside_changes(scripted_path: Path) -> None:
    """The event loop counts and lists while the model thread changes what is known."""
    first, second = (read_adapter(scripted_path.parent / name) for name in ("thinker", "caller"))
    catalog = Catalog(["base"], [Known(name="a", path=None)], roots=[])
    done = threading.Event()

    def change() -> None:
        for number in range(1000):
            files = (first, second)[number % 2]
            catalog.loaded("a", files)
            catalog.loaded(f"new{number}", files)
            seen.append(catalog.require("a").path == files.path)
        done.set()

    seen: list[bool] = []
    counted = 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        changing = threading.Thread(target=change)
        changing.start()
        while not done.is_set():
            catalog.count("a")
            counted += 1
            if counted % 64 == 0:
                catalog.served()
        changing.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(seen)
    assert next(item["requests"] for item in catalog.describe(None) if item["id"] == "a") == counted

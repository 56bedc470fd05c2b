"""The engine when something breaks: a request, the batch, the thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_router.compute import mx, nn
from mlx_router.errors import AdapterNotFound, EngineUnavailable, RequestTimeout
from mlx_router.lora.bank import AdapterBank
from mlx_router.specialist import core as core_module
from mlx_router.specialist.core import EngineCore, Limits
from mlx_router.specialist.engine import Engine
from mlx_router.specialist.job import Event, Failed, Finished, Job
from mlx_router.specialist.loading import Base, load_base
from tests import tiny_chat
from tests.engine_driver import Driver, fresh
from tests.waiting import until

POISON = 77


class Poisoned(nn.Module):
    """A model that fails whenever a certain token is among its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if (inputs == POISON).any().item():
            raise RuntimeError("poisoned")
        return self.model(inputs, cache=cache)

    @property
    def layers(self) -> Any:
        return self.model.layers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    root = tmp_path_factory.mktemp("engine")
    for name, first in {"endless": "loop", "thinker": "<think>"}.items():
        tiny_chat.save_starter(root / name, first)
    return load_base(str(tiny_chat.save_scripted(root / "base")), root, max_context=2048)


@pytest.fixture
def driver(base: Base) -> Driver:
    return Driver(fresh(base), base.path.parent)


def poison(driver: Driver) -> None:
    driver.bank.wrapped = Poisoned(driver.bank.wrapped)  # type: ignore[assignment]
    driver.core._batch = driver.core._new_batch()


def test_one_poisoned_request_ends_alone(driver: Driver) -> None:
    """Rows that had begun, and rows that joined with it, give the same answers as without it."""
    poison(driver)
    driver.add("early", "endless", max_tokens=30)
    for _ in range(8):
        driver.core.step()
    driver.add("bad", None, prompt=(5, POISON, 6))
    driver.add("joined")
    driver.drain()
    error = driver.end("bad")
    assert isinstance(error, Failed)
    assert isinstance(error.error, EngineUnavailable)
    assert "poisoned" not in error.error.message
    assert driver.text("early") == "loopfirst" * 15
    assert driver.text("joined") == tiny_chat.ANSWER
    assert driver.core.counters.recoveries >= 1
    assert driver.core.counters.failed == 1
    assert all(entry["leases"] == 0 for entry in driver.bank.stats()["resident"])


def test_two_poisoned_requests_and_a_cancellation(driver: Driver) -> None:
    poison(driver)
    driver.add("first", "thinker", prompt=(POISON, 9))
    driver.add("left", "endless")
    driver.add("second", None, prompt=(*range(5, 40), POISON, 3))
    driver.add("good")
    for _ in range(2):
        driver.core.step()
    driver.core.cancel("left")
    driver.drain()
    assert isinstance(driver.end("first"), Failed)
    assert isinstance(driver.end("second"), Failed)
    assert driver.text("good") == tiny_chat.ANSWER
    assert len(driver.core._batch) == 0


def test_a_prompt_that_several_choices_wait_for_fails(driver: Driver) -> None:
    """The first one ends; the others, which their server would cancel now, end as it did, one by one."""
    poison(driver)
    for index in range(3):
        driver.add(f"bad{index}", "endless", request="bad", prompt=(*range(5, 40), POISON, 3))
    driver.add("good")
    while not driver.events_end("bad0"):
        driver.core.step()
    assert isinstance(driver.end("bad0"), Failed)
    assert [name for name, _ in driver.events if name in ("bad1", "bad2")] == []
    driver.core.cancel("bad1")
    driver.drain()
    assert isinstance(driver.end("bad2"), Failed)
    assert driver.text("good") == tiny_chat.ANSWER
    assert len(driver.core._batch) == 0
    assert all(entry["leases"] == 0 for entry in driver.bank.stats()["resident"])


def test_a_batch_fails_while_choices_wait_for_their_prompt(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = core_module.Batch.step, []

    def fail_once(batch: Any, **arguments: Any) -> Any:
        if len(driver.of("r0")) and not failed and len(batch) == 2:
            failed.append(batch)
            raise MemoryError("no memory")
        return real(batch, **arguments)

    monkeypatch.setattr(core_module.Batch, "step", fail_once)
    driver.add("other", "endless", max_tokens=40)
    for index in range(3):
        driver.add(f"r{index}", request="r", prompt=(*range(5, 60), *driver.prompt()))
    driver.drain()
    assert failed
    assert [driver.text(f"r{index}") for index in range(3)] == [tiny_chat.ANSWER] * 3
    assert driver.text("other") == "loopfirst" * 20


def test_a_batch_that_always_fails_comes_to_an_end(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no memory")

    monkeypatch.setattr(core_module.Batch, "step", fail)
    for name in ("a", "b", "c"):
        driver.add(name)
    driver.drain(50)
    assert all(isinstance(driver.end(name), Failed) for name in ("a", "b", "c"))


def test_text_that_cannot_be_decoded_ends_its_row_alone(driver: Driver) -> None:
    driver.add("bad")
    driver.add("good")
    driver.core.step()
    row = next(row for row in driver.core._rows.values() if row.job.id == "bad")
    row.text.add = None  # type: ignore[method-assign, assignment]
    driver.drain()
    assert isinstance(driver.end("bad"), Failed)
    assert driver.text("good") == tiny_chat.ANSWER


def test_an_adapter_that_cannot_be_read_fails_its_own_jobs(driver: Driver) -> None:
    def fetch(name: str) -> None:
        driver.core.residents.missing(name, AdapterNotFound(f"{name} is gone"))

    driver.core.residents._fetch = fetch
    driver.add("lost", "endless")
    driver.add("good")
    driver.drain()
    assert isinstance(driver.end("lost"), Failed)
    assert driver.text("good") == tiny_chat.ANSWER


def test_time_is_up(driver: Driver) -> None:
    driver.add("late", "endless", max_tokens=1000, deadline_s=driver.now + 5)
    driver.add("queued", "endless", deadline_s=driver.now + 5)
    for _ in range(5):
        driver.core.step()
    driver.now += 6
    driver.drain()
    for name in ("late", "queued"):
        end = driver.end(name)
        assert isinstance(end, Failed)
        assert isinstance(end.error, RequestTimeout)
    assert driver.text("late")


# with its thread


@pytest.fixture
def make_engine(base: Base) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**changes: Any) -> Engine:
        def load() -> tuple[Base, AdapterBank]:
            own = load_base(str(base.path), base.path, max_context=2048)
            return own, AdapterBank(own.model, slots=4, max_rank=4)

        fields: dict[str, Any] = {
            "load": load,
            "read": lambda name: None,
            "limits": Limits(max_rows=4),
            "queue_limit": 8,
            "stall_s": 30.0,
        }
        made.append(Engine(**(fields | changes)))
        return made[-1]

    yield make
    for engine in made:
        engine._stopping.set()
        engine._thread.join(20)
        assert not engine._thread.is_alive()


def job(name: str, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": name,
        "adapter": None,
        "prompt": tuple(range(5, 20)),
        "max_tokens": 400,
        "deadline_s": time.monotonic() + 60,
    }
    return Job(**(fields | changes))


async def collect(engine: Engine, *jobs: Job) -> list[Event]:
    mail = engine.submit(jobs)
    events: list[Event] = []
    while not all(ticket.ended for ticket in mail.tickets):
        events += [event for _, event in await mail.take()]
    return events + [event for _, event in await mail.take()] if mail._events else events


def test_a_dead_thread_is_seen_and_nobody_waits(make_engine: Callable[..., Engine]) -> None:
    async def scenario() -> None:
        seen: list[BaseException] = []
        engine = make_engine(on_failure=seen.append)
        engine.start()
        assert engine.ready() == (False, "loading the base model")
        await until(lambda: engine.state == "running")
        assert engine.health()[:2] == (True, "ok")
        assert isinstance((await collect(engine, job("fine", max_tokens=3)))[-1], Finished)

        def break_step(core: EngineCore) -> None:
            core.step = None  # type: ignore[method-assign, assignment]

        mail = engine.submit([job("doomed")])
        await engine.call(break_step)
        events: list[Event] = []
        while not any(isinstance(event, Failed) for event in events):
            events += [event for _, event in await mail.take()]
        assert isinstance(seen[0], TypeError)
        alive, status, reason = engine.health()
        assert (alive, status) == (False, "dead")
        assert reason is not None
        with pytest.raises(EngineUnavailable):
            engine.submit([job("later")])
        with pytest.raises(EngineUnavailable):
            await engine.call(lambda core: None)

    asyncio.run(scenario())


def test_the_jobs_of_a_request_come_in_together(make_engine: Callable[..., Engine]) -> None:
    """A step, or an adapter change, between two of them would part them."""

    async def scenario() -> None:
        engine = make_engine()
        engine.start()
        await until(lambda: engine.state == "running")
        entered, release = threading.Event(), threading.Event()
        stuck = asyncio.create_task(engine.call(lambda core: entered.set() or release.wait(20)))
        await until(entered.is_set)
        engine.submit([job("one"), job("two")])
        assert engine._commands.qsize() == 1
        release.set()
        await stuck

    asyncio.run(scenario())


def test_a_stalled_thread_is_seen_and_seen_to_recover(make_engine: Callable[..., Engine]) -> None:
    async def scenario() -> None:
        engine = make_engine(stall_s=0.5)
        engine.start()
        await until(lambda: engine.state == "running")
        release = threading.Event()
        stuck = asyncio.create_task(engine.call(lambda core: release.wait(20)))
        await until(lambda: engine.health()[1] == "stalled")
        assert engine.ready()[0] is False
        late = job("late", deadline_s=time.monotonic() - 1.9)  # asyncio gives up on its own, 2 s after the deadline
        with pytest.raises(RequestTimeout):
            await engine.submit([late]).take()
        release.set()
        await stuck
        await until(lambda: engine.health()[1] == "ok")
        assert isinstance((await collect(engine, job("fine", max_tokens=3)))[-1], Finished)

    asyncio.run(scenario())


def test_a_call_that_was_given_up_changes_nothing(make_engine: Callable[..., Engine]) -> None:
    async def scenario() -> None:
        engine = make_engine()
        engine.start()
        await until(lambda: engine.state == "running")
        entered, release, ran = threading.Event(), threading.Event(), []
        stuck = asyncio.create_task(engine.call(lambda core: entered.set() or release.wait(20)))
        await until(entered.is_set)
        with pytest.raises(EngineUnavailable):
            await engine.call(lambda core: ran.append(1), timeout_s=0.05)
        release.set()
        await stuck
        await engine.call(lambda core: None)
        assert not ran

    asyncio.run(scenario())


def test_stopping_fails_what_is_left(make_engine: Callable[..., Engine]) -> None:
    async def scenario() -> None:
        engine = make_engine()
        engine.start()
        await until(lambda: engine.state == "running")
        mail = engine.submit([job("left", max_tokens=100000)])
        await mail.take()
        await engine.stop()
        await until(lambda: mail.tickets[0].ended)
        events = [event for _, event in await mail.take()]
        assert isinstance(events[-1], Failed)
        assert engine.state == "stopped"

    asyncio.run(scenario())


def test_the_wired_limit_is_never_touched(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm's generator would raise it when it is made, and set it back when it goes."""
    calls: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: calls.append(limit) or 0)
    monkeypatch.setattr(mx, "device_info", lambda *args: {"max_recommended_working_set_size": 2**34})
    driver = Driver(fresh(base), Path(base.path).parent)
    driver.add("a", max_tokens=2)
    driver.drain()
    assert isinstance(driver.end("a"), Finished)
    driver.core._batch._generator.close()
    del driver
    assert calls == []

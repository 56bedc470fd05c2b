"""The router's thread: batches, cache, failures, reloads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mlx_router.errors import RouterError, VersionCorrupt
from mlx_router.gateway.routing import RouterThread, RouterUnavailable
from mlx_router.head.decision import Decision


class Gated:
    """A router whose batches wait until they are let through."""

    def __init__(self, version: str = "v0001") -> None:
        self.version, self.notice, self.labels = version, None, ("general",)
        self.meta: dict[str, Any] = {"metrics": {}}
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.threads: set[str] = set()

    def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(prompts))
        self.entered.set()
        assert self.gate.wait(10)
        if "boom" in prompts:
            raise RuntimeError("boom")
        return [
            Decision(domain="general", score=0.9, reason="classified", router=self.version, encode_ms=2.0)
            for _ in prompts
        ]

    def encode(self, texts: Sequence[str]) -> Any:
        return np.zeros((len(texts), 384), dtype=np.float32)


def run(router: Callable[[], Any], body: Callable[[RouterThread], Awaitable[None]], cache_size: int = 100) -> None:
    async def main() -> None:
        thread = RouterThread(router, cache_size=cache_size)
        thread.start()
        try:
            await body(thread)
        finally:
            thread.stop()
            await asyncio.to_thread(thread._thread.join, 10)

    asyncio.run(main())


def test_prompts_that_wait_share_a_batch_and_equal_ones_a_place() -> None:
    router = Gated()

    async def body(thread: RouterThread) -> None:
        first = asyncio.create_task(thread.route("first"))
        await asyncio.to_thread(router.entered.wait, 10)
        rest = [asyncio.create_task(thread.route(text)) for text in ("a", "b", "a", "c")]
        await asyncio.sleep(0)  # let them queue
        router.gate.set()
        decisions = await asyncio.gather(first, *rest)
        assert router.batches == [["first"], ["a", "b", "c"]]
        assert {decision.encode_ms for decision in decisions} == {2.0}
        assert (await thread.route("a")).encode_ms == 0.0
        assert len(router.batches) == 2
        assert router.threads == {"router"}

    run(lambda: router, body)


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    router = Gated()
    router.gate.set()

    async def body(thread: RouterThread) -> None:
        for text in ("a", "b", "a", "c"):
            await thread.route(text)
        assert thread.lookup("a") is not None
        assert thread.lookup("b") is None
        assert thread.cached == 2

    run(lambda: router, body, cache_size=2)


def test_a_failed_batch_fails_its_prompts_and_no_others() -> None:
    router = Gated()
    router.gate.set()

    async def body(thread: RouterThread) -> None:
        with pytest.raises(RouterUnavailable):
            await thread.route("boom")
        assert (await thread.route("fine")).domain == "general"

    run(lambda: router, body)


def test_a_cancelled_client_does_not_cancel_the_others() -> None:
    router = Gated()

    async def body(thread: RouterThread) -> None:
        first, second = asyncio.create_task(thread.route("x")), asyncio.create_task(thread.route("x"))
        await asyncio.to_thread(router.entered.wait, 10)
        first.cancel()
        router.gate.set()
        assert (await second).domain == "general"

    run(lambda: router, body)


def test_a_reload_serves_the_new_version_and_forgets_the_old_decisions() -> None:
    versions = iter(["v0001", "v0002"])
    gates: list[Gated] = []

    def load() -> Gated:
        gates.append(Gated(next(versions)))
        gates[-1].gate.set()
        return gates[-1]

    async def body(thread: RouterThread) -> None:
        assert (await thread.route("x")).router == "v0001"
        assert (await thread.reload()).version == "v0002"
        assert (await thread.route("x")).router == "v0002"

    run(load, body)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one() -> None:
    router = Gated()
    router.gate.set()
    loads = iter([router, VersionCorrupt("router v0002 is corrupt")])

    def load() -> Gated:
        found = next(loads)
        if isinstance(found, RouterError):
            raise found
        return found

    async def body(thread: RouterThread) -> None:
        await thread.route("x")
        status = await thread.reload()
        assert status.ready
        assert status.notice == "router v0002 is corrupt; serving v0001 instead"
        assert (await thread.route("y")).router == "v0001"

    run(load, body)


def test_without_a_version_it_says_so() -> None:
    def load() -> Gated:
        raise VersionCorrupt("nothing to serve")

    async def body(thread: RouterThread) -> None:
        with pytest.raises(RouterUnavailable, match="nothing to serve"):
            await thread.route("x")
        with pytest.raises(RouterUnavailable):
            await thread.encode(["x"])
        assert not thread.status.ready

    run(load, body)

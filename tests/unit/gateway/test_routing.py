"""The router's thread: batches, cache, failures, reloads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mlx_router.errors import Overloaded, RouterError, VersionCorrupt
from mlx_router.gateway.routing import _YIELD_S, MAX_WAITING, RouterThread, RouterUnavailable
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
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(10)
        return np.array([[len(text)] * 384 for text in texts], dtype=np.float32)


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


def test_prompts_go_between_the_slices_of_an_embeddings_body() -> None:
    router = Gated()
    texts = ["x" * (80 - number) for number in range(80)]

    async def body(thread: RouterThread) -> None:
        job = asyncio.create_task(thread.encode(texts))
        other = asyncio.create_task(thread.encode(["y"]))
        await asyncio.to_thread(router.entered.wait, 10)
        prompt = asyncio.create_task(thread.route("a prompt"))
        await asyncio.sleep(0)  # let it queue
        assert thread.depth == 82
        router.gate.set()
        vectors = await job
        await asyncio.gather(prompt, other)
        assert [len(batch) for batch in router.batches] == [32, 1, 1, 32, 16]
        assert router.batches[1] == ["a prompt"]
        assert vectors[:, 0].tolist() == [len(text) for text in texts]
        assert thread.depth == 0

    run(lambda: router, body)


def test_long_texts_make_short_slices() -> None:
    router = Gated()
    router.gate.set()

    async def body(thread: RouterThread) -> None:
        await thread.encode(["x" * 100_000] * 20)
        assert [len(batch) for batch in router.batches] == [8, 8, 4]

    run(lambda: router, body)


def test_a_body_waits_for_prompts_but_not_for_ever() -> None:
    router = Gated()

    async def body(thread: RouterThread) -> None:
        first = asyncio.create_task(thread.route("first"))
        await asyncio.to_thread(router.entered.wait, 10)
        waiting = asyncio.create_task(thread.encode(["text"]))
        await asyncio.sleep(0)  # let it queue
        thread._submit("route", ["late"], due_s=time.monotonic() + 2 * _YIELD_S)
        soon = asyncio.create_task(thread.route("soon"))
        await asyncio.sleep(0)  # let it queue
        router.gate.set()
        await asyncio.gather(first, waiting, soon)
        assert router.batches[:3] == [["first"], ["soon"], ["text"]]

    run(lambda: router, body)


def test_a_client_that_leaves_takes_its_texts_along() -> None:
    router = Gated()

    async def body(thread: RouterThread) -> None:
        job = asyncio.create_task(thread.encode(["text"] * 64))
        await asyncio.to_thread(router.entered.wait, 10)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        router.gate.set()
        await thread.route("a prompt")
        assert router.batches == [["text"] * 32, ["a prompt"]]
        assert thread.depth == 0

    run(lambda: router, body)


def test_texts_are_counted_and_leave_prompts_their_places() -> None:
    router = Gated()

    async def body(thread: RouterThread) -> None:
        jobs = [asyncio.create_task(thread.encode(["text"] * 256)) for _ in range(MAX_WAITING // 256)]
        await asyncio.to_thread(router.entered.wait, 10)
        with pytest.raises(Overloaded):
            await thread.encode(["one more"])
        prompt = asyncio.create_task(thread.route("a prompt"))
        await asyncio.sleep(0)  # let it queue
        router.gate.set()
        assert (await prompt).domain == "general"
        await asyncio.gather(*jobs)

    run(lambda: router, body)


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

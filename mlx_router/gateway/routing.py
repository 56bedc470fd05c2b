"""The router on its own thread, behind a queue and an exact-match cache.

Prompts that wait are encoded in one batch; equal prompts that wait are encoded once. Texts of an embeddings body
are encoded in slices, and prompts that wait go between two slices. The thread that loads the router makes every call
to it. A new active version is loaded there too, while cached decisions still answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlx_router.errors import Overloaded, RouterError
from mlx_router.head.decision import Decision

log = logging.getLogger(__name__)

MAX_BATCH = 32  # prompts encoded together
MAX_WAITING = 2048  # prompts that are not done, and texts
SLICE_CHARS = 8192  # of the texts of one slice, as far as the encoder reads them
_READ_CHARS = 1024  # of one text: about the encoder's 256 tokens
_YIELD_S = 2.0  # a slice lets prompts go first that come up to this much later; none waits for ever
ALL_SCORES = 1_000_000  # `top`: every label


class RouterLike(Protocol):
    """What the gateway uses of `mlx_router.Router`."""

    version: str
    notice: str | None

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def meta(self) -> dict[str, Any]: ...

    def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]: ...

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


class RouterUnavailable(RouterError):
    """No router version is loaded."""

    status, code = 503, "router_unavailable"


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """What the thread serves; replaced whole, so that any thread may read it."""

    ready: bool = False
    version: str = ""
    notice: str = ""  # why another version than the active one is served
    error: str = "the router is loading"
    labels: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    loaded_at: float = 0.0  # time.time()


@dataclass(slots=True, order=True)
class _Job:
    due_s: float  # time.monotonic(); the earliest goes first
    number: int
    kind: str = field(compare=False)  # route, encode, reload or stop
    future: asyncio.Future[Any] = field(compare=False)
    texts: Sequence[str] = field(compare=False, default=())  # of a route: the prompt


class RouterThread:
    """Owner of the router. Public methods are called on the event loop."""

    def __init__(self, load: Callable[[], RouterLike], *, cache_size: int = 4096) -> None:
        self._load = load
        self._cache: OrderedDict[str, Decision] = OrderedDict()
        self._cache_size = cache_size
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._texts = 0  # of embeddings bodies that are not done
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router: RouterLike | None = None  # this and the next belong to the thread
        self._error = ""
        self._served = RouterStatus()
        self.status = RouterStatus()
        self.hits = 0
        self.misses = 0
        self.batches = 0
        self.on_encode: Callable[[float, int], None] = lambda seconds, prompts: None  # called on the loop

    def start(self) -> None:
        """Begin to load; requests may be queued at once."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after what is queued."""
        self._submit("stop", due_s=math.inf)

    @property
    def depth(self) -> int:
        """Prompts and texts that are not done."""
        return len(self._waiting) + self._texts

    @property
    def cached(self) -> int:
        """Decisions in the cache."""
        return len(self._cache)

    def lookup(self, prompt: str) -> Decision | None:
        """The decision for a prompt seen before, `encode_ms` 0."""
        decision = self._cache.get(prompt)
        if decision is None:
            self.misses += 1
            return None
        self.hits += 1
        self._cache.move_to_end(prompt)
        return decision

    async def route(self, prompt: str) -> Decision:
        """Decide, from the cache or by encoding. Raises RouterUnavailable, Overloaded."""
        return self.lookup(prompt) or await self.classify(prompt)

    async def classify(self, prompt: str) -> Decision:
        """Encode and decide; equal prompts that wait share one result."""
        future = self._waiting.get(prompt)
        if future is None:
            if len(self._waiting) >= MAX_WAITING:
                raise Overloaded("too many prompts wait to be classified", retry_after_s=1.0)
            future = self._waiting[prompt] = self._submit("route", [prompt])
            future.add_done_callback(lambda done: self._remember(prompt, done))
        return await asyncio.shield(future)

    async def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """n texts -> (n, 384) float32. Raises RouterUnavailable, Overloaded."""
        if self._texts + len(texts) > MAX_WAITING:
            raise Overloaded("too many texts wait to be encoded", retry_after_s=1.0)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # equal lengths need no padding
        vectors: list[npt.NDArray[np.float32]] = []
        self._texts += len(texts)
        try:
            for part in _slices([texts[index] for index in order]):
                vectors.append(await self._submit("encode", part, due_s=time.monotonic() + _YIELD_S))
        finally:
            self._texts -= len(texts)
        return np.concatenate(vectors)[np.argsort(order)]

    async def reload(self) -> RouterStatus:
        """Load the version that is active now; the old one serves until then, and on if it cannot be loaded."""
        status: RouterStatus = await self._submit("reload")
        return status

    def _submit(self, kind: str, texts: Sequence[str] = (), *, due_s: float | None = None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        due_s = time.monotonic() if due_s is None else due_s
        self._jobs.put(_Job(due_s, next(self._numbers), kind, future, texts))
        return future

    def _remember(self, prompt: str, done: asyncio.Future[Decision]) -> None:
        self._waiting.pop(prompt, None)
        if done.cancelled() or done.exception() is not None:
            return
        decision = done.result()
        if decision.router != self.status.version:
            return  # decided by a version that has been replaced meanwhile
        self._cache[prompt] = replace(decision, encode_ms=0.0)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._reload()
        while (job := self._jobs.get()).kind != "stop":
            if job.kind == "route":
                self._route(self._batch(job))
            elif not job.future.cancelled():
                self._other(job)

    def _batch(self, first: _Job) -> list[_Job]:
        """A prompt with those that follow it at once."""
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following.kind != "route":
                self._jobs.put(following)
                break
            batch.append(following)
        return batch

    def _route(self, jobs: list[_Job]) -> None:
        if self._router is None:
            self._fail(jobs, RouterUnavailable(self._error))
            return
        started = time.perf_counter()
        try:
            decisions = self._router.route_many([job.texts[0] for job in jobs], top=ALL_SCORES)
        except Exception as error:
            log.exception("event=route_failed prompts=%d", len(jobs))
            self._fail(jobs, RouterUnavailable(f"the router failed: {type(error).__name__}"))
            return
        elapsed = time.perf_counter() - started
        self.batches += 1
        self._call(self.on_encode, elapsed, len(jobs))
        for job, decision in zip(jobs, decisions, strict=True):
            self._call(_resolve, job.future, decision)

    def _other(self, job: _Job) -> None:
        try:
            if job.kind == "reload":
                result: Any = self._reload()
            elif self._router is None:
                raise RouterUnavailable(self._error)
            else:
                result = self._router.encode(job.texts)
        except RouterError as error:
            self._fail([job], error)
        except Exception as error:
            log.exception("event=%s_failed", job.kind)
            self._fail([job], RouterUnavailable(f"the encoder failed: {type(error).__name__}"))
        else:
            self._call(_resolve, job.future, result)

    def _reload(self) -> RouterStatus:
        try:
            router = self._load()
            status = RouterStatus(
                ready=True,
                version=router.version,
                notice=router.notice or "",
                error="",
                labels=tuple(router.labels),
                meta=dict(router.meta),
                loaded_at=time.time(),
            )
        except Exception as error:
            message = error.message if isinstance(error, RouterError) else f"{type(error).__name__}"
            log.error("event=router_load_failed error=%r", message, exc_info=not isinstance(error, RouterError))
            self._error = message
            if self._router is None:
                status = RouterStatus(error=message)
            else:
                notice = f"{message}; serving {self._router.version} instead"
                status = replace(self._served, notice=notice)
        else:
            self._router, self._served = router, status
            log.info("event=router_loaded version=%s notice=%r", status.version, status.notice)
        self._call(self._publish, status)
        return status

    def _publish(self, status: RouterStatus) -> None:
        if status.version != self.status.version:
            self._cache.clear()
        self.status = status

    def _fail(self, jobs: list[_Job], error: RouterError) -> None:
        for job in jobs:
            self._call(_reject, job.future, error)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run on the event loop; nothing to do once it is closed."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:  # closed between the two lines
                log.debug("event=loop_closed")


def _slices(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts that take the encoder about as long as a batch of prompts."""
    part: list[str] = []
    chars = 0
    for text in texts:
        read = min(len(text), _READ_CHARS)
        if part and (len(part) == MAX_BATCH or chars + read > SLICE_CHARS):
            yield part
            part, chars = [], 0
        part.append(text)
        chars += read
    yield part


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: asyncio.Future[Any], error: RouterError) -> None:
    if not future.done():
        future.set_exception(error)

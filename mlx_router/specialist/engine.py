"""The one thread that owns mlx, and the asyncio side that talks to it with plain data.

    asyncio                        model thread
    submit, cancel, call  ──────>  commands (a queue of functions of the core)
    mail, futures         <──────  events, one call_soon_threadsafe a step

States: starting → running → draining → stopped; failed when the base cannot be loaded or the thread dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from mlx_router.errors import EngineUnavailable, Overloaded, RouterError
from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.load import AdapterFiles
from mlx_router.specialist.core import EngineCore, Limits
from mlx_router.specialist.counters import Snapshot
from mlx_router.specialist.generation import clear_buffers, seed_generator
from mlx_router.specialist.job import Event, Failed, Job
from mlx_router.specialist.loading import Base
from mlx_router.specialist.mail import Mail, Ticket

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["starting", "running", "draining", "stopped", "failed"]
IDLE_POLL_S = 0.25  # how long the model thread sleeps when nothing is asked of it
SNAPSHOT_S = 0.1  # age at which the picture of a busy engine is taken again
TRIM_S = 5.0  # idle time after which mlx's buffers go back to the system


class Engine:
    """Start it inside a running event loop; every method but `post` is for that loop's thread.

    `load` makes base and bank on the model thread. `read(name)` reads an adapter that a job waits for, on a thread
    of its own.
    """

    def __init__(
        self,
        *,
        load: Callable[[], tuple[Base, AdapterBank]],
        read: Callable[[str], AdapterFiles],
        limits: Limits,
        queue_limit: int,
        stall_s: float,
        prepare: Callable[[EngineCore], None] = lambda core: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._load = load
        self._read = read
        self._limits = limits
        self._capacity = queue_limit + limits.max_rows
        self.queue_limit = queue_limit
        self._stall_s = stall_s
        self._prepare = prepare
        self._on_failure = on_failure
        self._commands: queue.SimpleQueue[Callable[[EngineCore], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[str, Event]] = []
        self._tickets: dict[str, Ticket] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._beat_s = time.monotonic()
        self._job_s = 2.0  # how long a job takes, a running mean
        self.base: Base | None = None
        self.core: EngineCore | None = None  # for its texts; the rest of it belongs to the model thread
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.snapshot: Snapshot | None = None

    # asyncio's side

    def start(self) -> None:
        """Begin loading the base."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def load_factor(self) -> tuple[int, int]:
        """(jobs waiting, jobs running)."""
        waiting = sum(not ticket.started for ticket in self._tickets.values())
        return waiting, len(self._tickets) - waiting

    def check_room(self, jobs: int) -> None:
        """Raises EngineUnavailable, or Overloaded where so many more jobs find no place in the queue."""
        self._check_running()
        if len(self._tickets) + jobs > self._capacity:
            waiting, _ = self.load_factor
            wait_s = self._job_s * max(1, waiting) / self._limits.max_rows
            raise Overloaded(
                f"the queue is full: {self.queue_limit} requests may wait",
                retry_after_s=min(60.0, max(1.0, wait_s)),
            )

    def submit(self, jobs: Sequence[Job]) -> Mail:
        """Queue the jobs of one request. Raises EngineUnavailable, or Overloaded before anything is queued."""
        self.check_room(len(jobs))
        mail = Mail(jobs)
        self._tickets |= {ticket.job.id: ticket for ticket in mail.tickets}
        self._commands.put(_adding(jobs))
        return mail

    def close(self, mail: Mail) -> None:
        """Forget a request; its jobs that have not ended are cancelled before the next step."""
        for ticket in mail.tickets:
            if self._tickets.pop(ticket.job.id, None) is not None and not ticket.ended:
                self._commands.put(_cancelling(ticket.job.id))

    async def call(self, function: Callable[[EngineCore], T], *, timeout_s: float = 60.0) -> T:
        """Run `function` on the model thread between two steps, and return what it returns or raise what it raises."""
        self._check_running()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def command(core: EngineCore) -> None:
            if future.cancelled():  # the caller has given up: nothing may change behind its back
                return
            try:
                result = function(core)
            except Exception as error:  # handed to the caller
                self._snap()
                self._to_loop(_fail_future, future, error)
            else:
                self._snap()
                self._to_loop(_set_future, future, result)

        self._commands.put(command)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise EngineUnavailable(f"the model thread did not answer in {timeout_s:g} s") from None

    def post(self, function: Callable[[EngineCore], None]) -> None:
        """Run `function`, which must not raise, on the model thread between two steps; nobody waits. Any thread."""
        self._commands.put(function)

    async def read(self, function: Callable[[], T]) -> T:
        """Run `function` on the reader thread: files are read one at a time, beside decoding."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)

    def _check_running(self) -> None:
        if self.state == "running" and self._thread.is_alive():
            return
        reasons = {"starting": "the base model is loading", "draining": "the server is shutting down"}
        wait_s = 5.0 if self.state == "starting" else None
        raise EngineUnavailable(reasons.get(self.state, "the model thread has stopped"), retry_after_s=wait_s)

    def health(self) -> tuple[bool, str, str | None]:
        """(alive, "ok" | "dead" | "stalled", reason)."""
        if self.state == "failed" or (self.state == "running" and not self._thread.is_alive()):
            kind = type(self.failure).__name__ if self.failure is not None else "unknown"
            return False, "dead", f"the model thread died ({kind})"
        silent_s = time.monotonic() - self._beat_s
        if self.state in ("running", "draining") and silent_s > self._stall_s:
            return False, "stalled", f"no step for {silent_s:.0f} s"
        return True, "ok", None

    def ready(self) -> tuple[bool, str | None]:
        """Whether requests are taken, and why not."""
        alive, _, reason = self.health()
        if not alive:
            return False, reason
        if self.state != "running":
            return False, {"starting": "loading the base model"}.get(self.state, self.state)
        return True, None

    def drain(self) -> None:
        """Take no new jobs; those that are in go on."""
        if self.state == "running":
            self.state = "draining"

    async def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the thread; jobs that are left fail."""
        self.drain()
        self._stopping.set()
        self._commands.put(lambda core: None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self.state != "failed":
            self.state = "stopped"

    def _dispatch(self, batch: list[tuple[str, Event]]) -> None:
        for job_id, event in batch:
            ticket = self._tickets.get(job_id)
            if ticket is None:
                continue
            ticket.put(event)
            if ticket.ended:
                del self._tickets[job_id]
                left_s = ticket.job.deadline_s - time.monotonic()
                taken_s = max(0.0, ticket.job.budget_s - left_s)
                self._job_s += 0.1 * (taken_s - self._job_s)

    def _died(self, error: BaseException) -> None:
        self.failure = error
        self.state = "failed"
        for ticket in list(self._tickets.values()):
            ticket.put(Failed(EngineUnavailable("the model thread has stopped")))
        self._tickets.clear()
        self._on_failure(error)

    # the model thread's side

    def _run(self) -> None:
        try:
            seed_generator()
            base, bank = self._load()
            core = EngineCore(base, bank, limits=self._limits, emit=self._emit, fetch=self._fetch)
            self._prepare(core)
            self.base, self.core = base, core
            self._beat_s = time.monotonic()
            self._snap()
            self._to_loop(self._set_running)
            self._serve(core)
            core.fail_all(EngineUnavailable("the server is shutting down"))
            self._flush()
        except BaseException as error:  # this thread's end must be seen, whatever ended it
            log.exception("model thread ended")
            self._flush()
            self._to_loop(self._died, error)

    def _set_running(self) -> None:
        if self.state == "starting":
            self.state = "running"

    def _serve(self, core: EngineCore) -> None:
        idle_since: float | None = None
        snapped_s = 0.0
        while not self._stopping.is_set():
            self._beat_s = now = time.monotonic()
            changed = self._obey(core)
            if core.busy:
                idle_since = None
                core.step()
                changed |= not core.busy
            elif idle_since is None:
                idle_since, changed = now, True
            elif now - idle_since > TRIM_S:
                idle_since = float("inf")
                clear_buffers()
            if changed or (core.busy and now - snapped_s > SNAPSHOT_S):
                self._snap()
                snapped_s = now
            self._flush()

    def _obey(self, core: EngineCore) -> bool:
        """Carry out what was asked; sleep only when there is nothing to compute."""
        obeyed = False
        wait = not core.runnable
        while True:
            try:
                command = self._commands.get(block=wait, timeout=IDLE_POLL_S if wait else None)
            except queue.Empty:
                return obeyed
            command(core)
            obeyed, wait = True, False

    def _emit(self, job_id: str, event: Event) -> None:
        self._outbox.append((job_id, event))

    def _flush(self) -> None:
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self._to_loop(self._dispatch, batch)

    def _snap(self) -> None:
        if self.core is not None:
            self.snapshot = self.core.snapshot()

    def _fetch(self, name: str) -> None:
        """Read an adapter beside decoding; the answer comes back as a command."""

        def work() -> None:
            try:
                files = self._read(name)
            except RouterError as error:
                reason = error
            except Exception as error:  # a bug in reading must not leave jobs waiting for ever
                log.exception("adapter=%s cannot be read", name)
                reason = EngineUnavailable(f"adapter {name!r} cannot be read ({type(error).__name__})")
            else:
                self._commands.put(lambda core: core.residents.arrived(name, files))
                return
            self._commands.put(lambda core: core.residents.missing(name, reason))

        try:
            self._reader.submit(work)
        except RuntimeError:  # shutting down
            self._commands.put(
                lambda core: core.residents.missing(name, EngineUnavailable("the server is shutting down"))
            )

    def _to_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is listening any more
                self._loop.call_soon_threadsafe(function, *arguments)


def _set_future(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail_future(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _adding(jobs: Sequence[Job]) -> Callable[[EngineCore], None]:
    def add(core: EngineCore) -> None:
        for job in jobs:
            core.add(job)

    return add


def _cancelling(job_id: str) -> Callable[[EngineCore], None]:
    return lambda core: core.cancel(job_id)

"""One child: its process, its state, its log. It is started again until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from mlx_router.config import SupervisorConfig
from mlx_router.supervisor.logfile import RotatingLog
from mlx_router.supervisor.probe import Look, Prober
from mlx_router.supervisor.spec import ChildSpec
from mlx_router.supervisor.states import Backoff, State, check_step

FIRST_LOOK_S = 0.05  # between two looks at a child that starts; slower with time
DEAD_S = 2.0  # a child that says itself that it is dead has this long to leave
_READ_BYTES = 2**16
_READS = 16  # at once, so that a child that floods its log does not keep us from the others


@dataclass(frozen=True, slots=True)
class Life:
    """How one process ended."""

    reason: str
    status: int | None  # exit status, negative for a signal; None: it could not be started
    ready_s: float | None  # how long it was ready


class Child:
    """All calls come from the event loop's thread. `on_change` is told of every new state."""

    def __init__(
        self,
        spec: ChildSpec,
        settings: SupervisorConfig,
        log: RotatingLog,
        prober: Prober,
        on_change: Callable[[Child], None] = lambda child: None,
    ) -> None:
        self.spec = spec
        self.log = log
        self.prober = prober
        self.state = State.STOPPED
        self.serving = False  # its last /ready said yes
        self.reason = ""  # why it is not serving
        self.since = time.time()
        self.pid: int | None = None
        self.restarts = 0
        self.last: Life | None = None
        self.next_start: float | None = None  # time.time()
        self.look = Look(False)
        self.waits: frozenset[str] = frozenset()  # parts of its /ready that are not
        self._settings = settings
        self._on_change = on_change
        self._backoff = Backoff(
            first_s=settings.backoff_first_s,
            limit_s=settings.backoff_limit_s,
            give_up_after=settings.give_up_after,
            settle_s=settings.settle_s,
        )
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._ready_at: float | None = None  # time.monotonic()

    def start(self) -> None:
        """Begin, unless it runs already."""
        if self._task is None or self._task.done():
            self._stopping = False
            self._backoff.reset()
            self._task = asyncio.create_task(self._live(), name=f"child {self.spec.name}")

    def retry(self) -> None:
        """Start now what waits, or was given up."""
        if self.state in (State.BACKING_OFF, State.FAILED):
            self._backoff.reset()
            self._wake.set()

    async def stop(self) -> None:
        """Let running answers end within the drain time, then kill."""
        if self._task is None:
            return
        self._stopping = True
        self._wake.set()
        if self._process is not None and self._process.returncode is None:
            self._enter(State.STOPPING, "")
            self._signal(signal.SIGTERM)
            bound_s = self.spec.drain_s + self._settings.grace_s
            if not await self._ended(bound_s):
                self.log.write(f"serve: still there {bound_s:g} s after SIGTERM, killed\n".encode())
                self.kill()
        await self._task

    def kill(self) -> None:
        """End the process group at once; what follows is up to the state."""
        self._signal(signal.SIGKILL, group=True)

    def hang_up(self) -> None:
        """Send SIGHUP: read the configuration again."""
        self._signal(signal.SIGHUP)

    # the task

    async def _live(self) -> None:
        while not self._stopping:
            self._enter(State.STARTING, "")
            self.last = life = await self._one_life()
            if self._stopping:
                break
            delay_s = self._backoff.ended(life.ready_s)
            self._wake.clear()
            if delay_s is None:
                self._enter(State.FAILED, life.reason)
                await self._wake.wait()
            else:
                self.next_start = time.time() + delay_s
                self._enter(State.BACKING_OFF, life.reason)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay_s)
            self.next_start = None
            self.restarts += not self._stopping
        if self.state not in (State.STOPPING, State.STOPPED):
            self._enter(State.STOPPING, "")
        self._enter(State.STOPPED, "")

    async def _one_life(self) -> Life:
        self._ready_at = None
        self.log.forget()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        loop = asyncio.get_running_loop()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env=dict(self.spec.environment) or None,
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            return Life(f"cannot be started: {error.strerror or error}", None, None)
        finally:
            os.close(writer)
        self.pid = process.pid
        loop.add_reader(reader, self._pump, reader)
        watch = asyncio.create_task(self._watch())
        try:
            if self._stopping:  # asked while it was being started
                self._signal(signal.SIGTERM)
            status = await process.wait()
        finally:
            watch.cancel()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # nothing that it started stays behind
            self._pump(reader)
            loop.remove_reader(reader)
            os.close(reader)
            self._process, self.pid, self.serving, self.look = None, None, False, Look(False)
        killed_for = watch.result() if watch.done() and not watch.cancelled() else ""
        ready_s = None if self._ready_at is None else time.monotonic() - self._ready_at
        return Life(killed_for or self._why(status), status, ready_s)

    async def _watch(self) -> str:
        """Look until the process has to be killed; says why it was."""
        began = healthy_at = time.monotonic()
        dead_at: float | None = None
        listened = False
        pause_s = FIRST_LOOK_S
        while True:
            self.look = look = await self.prober.look()
            if self._stopping:  # it does not listen while its last answers end
                return ""
            now = time.monotonic()
            if look.healthy or (look.listens and not listened):
                healthy_at = now
            listened = listened or look.listens
            dead_at = (dead_at or now) if look.dead else None
            self._see(look)
            limit_s = self._settings.unhealthy_s if listened else self._settings.boot_timeout_s
            dead = dead_at is not None and now - dead_at > DEAD_S  # until then it may leave, and say why
            if dead or now - (healthy_at if listened else began) > limit_s:
                reason = f"killed: {look.reason or 'no answer'} (for {now - healthy_at:.0f} s)"
                self.log.write(f"serve: {reason}\n".encode())
                self.kill()
                return reason
            if self.state is State.READY:
                pause_s = self._settings.probe_interval_s
            else:
                pause_s = min(pause_s * 1.3, 0.5, self._settings.probe_interval_s)
            await asyncio.sleep(pause_s)

    def _see(self, look: Look) -> None:
        if look.ready and self.state is State.STARTING:
            self._ready_at = time.monotonic()
            self.serving, self.waits = True, look.waits
            self._enter(State.READY, "")
        elif self.state in (State.STARTING, State.READY):
            waits = self.state is State.STARTING and not look.listens
            reason = "" if look.ready else "does not listen yet" if waits else look.reason
            if (look.ready, reason, look.waits) != (self.serving, self.reason, self.waits):
                self.serving, self.reason, self.waits = look.ready, reason, look.waits
                self._on_change(self)

    def _pump(self, reader: int) -> None:
        """From the child's pipe to its log, for as long as there is anything."""
        with contextlib.suppress(BlockingIOError, OSError):
            for _ in range(_READS):
                data = os.read(reader, _READ_BYTES)
                if not data:
                    asyncio.get_running_loop().remove_reader(reader)
                    return
                self.log.write(data)

    async def _ended(self, timeout_s: float) -> bool:
        task = self._task
        if task is None:
            return True
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        return bool(done)

    def _signal(self, number: signal.Signals, *, group: bool = False) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def _why(self, status: int) -> str:
        how = f"ended by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        errors = [line for line in self.log.tail() if line.startswith("Error: ")]
        last = errors[-1].removeprefix("Error: ") if errors else "".join(self.log.tail()[-1:]) if status > 0 else ""
        return f"{how}: {last}" if last else how

    def _enter(self, state: State, reason: str) -> None:
        if state is self.state:
            return
        check_step(self.state, state)
        self.state, self.reason, self.since = state, reason, time.time()
        if state is not State.READY:
            self.serving, self.waits = False, frozenset()
        self._on_change(self)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

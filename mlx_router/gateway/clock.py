"""How long an attempt may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mlx_router.config import GatewayConfig
from mlx_router.errors import UpstreamTimeout

Alive = Callable[[], Awaitable[bool]]

_EARLY_S = 0.002  # a loop counts in milliseconds, and may wake us this much before the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The four of [gateway], in seconds."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float

    @classmethod
    def of(cls, config: GatewayConfig) -> Timeouts:
        """Those of a configuration."""
        return cls(
            connect_s=config.connect_timeout_s,
            first_byte_s=config.first_byte_timeout_s,
            idle_s=config.idle_timeout_s,
            total_s=config.total_timeout_s,
        )


class Clock:
    """The deadline of an attempt: to the first byte, then between two bytes, never beyond the total.

    With `alive` a first byte that does not come is no failure as long as that says yes, asked once each
    `first_byte_s` until the head of the answer is there. Most attempts end long before any of these times, so there is
    one timer for all of them, and it is not moved at every byte: when it fires it is set for what is left.
    """

    def __init__(self, timeouts: Timeouts, started: float, alive: Alive | None = None) -> None:
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._began = self._heard = self._loop.time()
        self._end = started + timeouts.total_s
        self._alive = alive
        self._first_byte = self._end if alive is not None else min(self._began + timeouts.first_byte_s, self._end)
        self._look: asyncio.Task[None] | None = None
        self.phase = "first_byte"
        self.limit = asyncio.timeout(None)  # of the attempt; ended by the timer
        self._timer = self._loop.call_at(min(self._began + timeouts.first_byte_s, self._end), self._due)

    def head(self) -> None:
        """Status and headers are there: whether the endpoint is alive is no question any more."""
        self._alive = None
        if self._look is not None:
            self._look.cancel()

    def heard(self) -> None:
        """A byte came, or was taken by the client."""
        self._heard = self._loop.time()
        if self.phase != "idle":
            self.phase = "idle"
            self._wake_at(self._deadline())

    def stop(self) -> None:
        """The attempt has ended."""
        self.head()
        self._timer.cancel()

    def elapsed(self) -> float:
        """Seconds since the attempt began."""
        return self._loop.time() - self._began

    def error(self) -> UpstreamTimeout:
        """What ran out."""
        if self._loop.time() + _EARLY_S >= self._end:
            return UpstreamTimeout(f"total time-out: the answer took more than {self._timeouts.total_s:g} s")
        if self.phase == "first_byte":
            return UpstreamTimeout(f"first-byte time-out: nothing came for {self.elapsed():.3g} s")
        return UpstreamTimeout(f"idle time-out: the answer stopped for {self._timeouts.idle_s:g} s")

    def _deadline(self) -> float:
        if self.phase == "idle":
            return min(self._heard + self._timeouts.idle_s, self._end)
        return self._first_byte

    def _wake_at(self, when: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        now, deadline = self._loop.time(), self._deadline()
        if now + _EARLY_S >= deadline:
            self._expire(now)
            return
        self._wake_at(deadline)
        if self._alive is not None:
            self._look = asyncio.ensure_future(self._look_now(self._alive))

    async def _look_now(self, alive: Alive) -> None:
        if await alive():
            self._wake_at(min(self._loop.time() + self._timeouts.first_byte_s, self._deadline()))
        else:
            self._expire(self._loop.time())

    def _expire(self, now: float) -> None:
        if not self.limit.expired():
            self.limit.reschedule(now)

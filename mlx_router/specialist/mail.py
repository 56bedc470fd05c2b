"""Where a request's events wait until its handler takes them; on the event loop's thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from mlx_router.errors import RequestTimeout
from mlx_router.specialist.job import Event, Failed, Finished, Job, Started

GRACE_S = 2.0  # after the deadline, until asyncio gives up on the model thread


class ClientGone(Exception):
    """The client closed its connection."""


class Ticket:
    """One job of a request."""

    __slots__ = ("ended", "index", "job", "mail", "started")

    def __init__(self, job: Job, index: int, mail: Mail) -> None:
        self.job = job
        self.index = index
        self.mail = mail
        self.started = False
        self.ended = False

    def put(self, event: Event) -> None:
        if isinstance(event, Started):
            self.started = True
        elif isinstance(event, Finished | Failed):
            self.ended = True
        self.mail.put(self.index, event)


class Mail:
    """The events of all jobs of one request, in the order in which they came."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.tickets = [Ticket(job, index, self) for index, job in enumerate(jobs)]
        self._deadline_s = max(job.deadline_s for job in jobs) + GRACE_S
        self._events: deque[tuple[int, Event]] = deque()
        self._ready = asyncio.Event()
        self._gone = False

    def put(self, index: int, event: Event) -> None:
        self._events.append((index, event))
        self._ready.set()

    def client_left(self) -> None:
        """Nobody reads the answer any more: `take` raises ClientGone."""
        self._gone = True
        self._ready.set()

    async def take(self, quiet_s: float | None = None) -> list[tuple[int, Event]]:
        """Every (index of the job, event) since the last call; empty only after `quiet_s` without any.

        Raises ClientGone, and RequestTimeout if the model thread says nothing at all.
        """
        if not self._events and not self._gone:
            self._ready.clear()
            left_s = self._deadline_s - time.monotonic()
            wait_s = left_s if quiet_s is None else min(left_s, quiet_s)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._ready.wait()
            except TimeoutError:
                if wait_s < left_s:
                    return []
                raise RequestTimeout("the model did not answer in time") from None
        if self._gone:
            raise ClientGone
        taken = list(self._events)
        self._events.clear()
        return taken

"""Who is next, and how time is shared; pure policy, no model.

waiting     one queue an adapter; adapters take turns, so a burst for one does not delay another
long        prompts over one chunk use at most half of the prefill places, so short ones pass them
blocked     an adapter whose weights are on their way, or for which no slot is free: its jobs keep their order
held        an adapter that must give its slot to a blocked one: it starts nothing new until that has happened
bound       a job whose request has begun: it holds a lease, and starts whether its adapter is blocked, held or gone
following   a job whose prompt another choice of its request is computing: it starts from the state that comes of it
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from mlx_router.specialist.job import Job


class WaitingJobs:
    """Jobs that have not started, by adapter, with turns between adapters. `bound`: ids of those that are."""

    def __init__(self, *, long_tokens: int, long_places: int, bound: Container[str] = ()) -> None:
        self._queues: OrderedDict[str | None, deque[Job]] = OrderedDict()
        self._bound = bound
        self._long_tokens = long_tokens
        self._long_places = long_places

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Job]:
        for queue in self._queues.values():
            yield from queue

    def add(self, job: Job) -> None:
        """Behind the other jobs of its adapter; an adapter new to the queue gets the last turn."""
        self._queues.setdefault(job.adapter, deque()).append(job)

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None where it does not wait."""
        return next((self._take(job) for job in self if job.id == job_id), None)

    def take_all(self, accept: Callable[[Job], bool]) -> list[Job]:
        """Take out every job that `accept` names."""
        return [self._take(job) for job in [job for job in self if accept(job)]]

    def take_unbound(self, adapter: str) -> list[Job]:
        """Take out every job of `adapter` whose request has not begun."""
        return self.take_all(lambda job: job.adapter == adapter and job.id not in self._bound)

    def adapters(self) -> list[str | None]:
        """Adapters with waiting jobs, in the order of their turns."""
        return list(self._queues)

    def wanted(self, adapter: str | None) -> bool:
        """Whether a job waits for `adapter` as it is now."""
        return any(job.id not in self._bound for job in self._queues.get(adapter, ()))

    def siblings(self, job: Job) -> list[Job]:
        """Waiting jobs of the same request."""
        return [other for other in self._queues.get(job.adapter, ()) if other.request == job.request != ""]

    def startable(self, usable: Callable[[str | None], bool]) -> bool:
        """Whether a job could start now, if there were a place for it."""
        return any(usable(adapter) or any(self._bound_in(queue)) for adapter, queue in self._queues.items())

    def next(
        self, *, long_running: int, usable: Callable[[str | None], bool], leading: Sequence[Job] = ()
    ) -> Job | None:
        """Take the job whose turn it is, among those that are bound or whose adapter `usable` admits; else None.

        `long_running`: prompts longer than one chunk that are being prefilled now. `leading`: jobs that others follow.
        """
        room_for_long = long_running < self._long_places
        for adapter, queue in self._queues.items():
            able: Iterable[Job] = queue if usable(adapter) else self._bound_in(queue)
            able = (job for job in able if not any(job.same_prompt(other) for other in leading))
            job = next((job for job in able if room_for_long or not self.is_long(job)), None)
            if job is not None:
                self._take(job)
                if adapter in self._queues:
                    self._queues.move_to_end(adapter)
                return job
        return None

    def _bound_in(self, queue: Iterable[Job]) -> Iterator[Job]:
        return (job for job in queue if job.id in self._bound)

    def is_long(self, job: Job) -> bool:
        """Whether the prompt needs more than one prefill chunk."""
        return len(job.prompt) > self._long_tokens

    def _take(self, job: Job) -> Job:
        queue = self._queues[job.adapter]
        queue.remove(job)
        if not queue:
            del self._queues[job.adapter]
        return job


class Pace:
    """Share the model's time between prefill chunks and decode steps.

    Each chunk delays every running answer. After a chunk that took `t`, decoding alone gets `share * t`
    before the next chunk, but never more than `max_steps` steps, so that prompts advance as well.
    """

    def __init__(self, *, share: float = 1.0, max_steps: int = 64) -> None:
        self._share = share
        self._max_steps = max_steps
        self._owed_s = 0.0
        self._steps = 0

    def decode_only(self, *, decoding: int, prefilling: int) -> bool:
        """Whether the next step should leave prompts alone."""
        if not decoding or not prefilling or self._steps >= self._max_steps:
            return False
        return self._owed_s > 0.0

    def spent(self, seconds: float, *, prefill: bool) -> None:
        """Account for one step: with a prefill chunk in it, or decoding alone."""
        if prefill:
            self._owed_s, self._steps = seconds * self._share, 0
        else:
            self._owed_s -= seconds
            self._steps += 1

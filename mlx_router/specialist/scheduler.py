"""Who is next, and how time is shared; pure policy, no model.

waiting     one queue an adapter; adapters take turns, so a burst for one does not delay another
long        prompts over one chunk use at most half of the prefill places, so short ones pass them
blocked     an adapter whose weights are on their way, or for which no slot is free: its jobs keep their order
held        an adapter that must give its slot to a blocked one: it starts nothing new until that has happened
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from mlx_router.specialist.job import Job


class WaitingJobs:
    """Jobs that have not started, by adapter, with turns between adapters."""

    def __init__(self, *, long_tokens: int, long_places: int) -> None:
        self._queues: OrderedDict[str | None, deque[Job]] = OrderedDict()
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

    def put_back(self, job: Job) -> None:
        """Before the other jobs of its adapter, with the next turn."""
        self._queues.setdefault(job.adapter, deque()).appendleft(job)
        self._queues.move_to_end(job.adapter, last=False)

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None where it does not wait."""
        return next((self._take(job) for job in self if job.id == job_id), None)

    def take_all(self, accept: Callable[[Job], bool]) -> list[Job]:
        """Take out every job that `accept` names."""
        return [self._take(job) for job in [job for job in self if accept(job)]]

    def adapters(self) -> list[str | None]:
        """Adapters with waiting jobs, in the order of their turns."""
        return list(self._queues)

    def oldest(self, adapter: str | None) -> Job | None:
        """The job of `adapter` that would start first."""
        queue = self._queues.get(adapter)
        return queue[0] if queue else None

    def next(self, *, long_running: int, usable: Callable[[str | None], bool]) -> Job | None:
        """Take the job whose turn it is, among adapters that `usable` admits; None where there is none.

        `long_running`: prompts longer than one chunk that are being prefilled now.
        """
        for adapter, queue in self._queues.items():
            if not usable(adapter):
                continue
            room_for_long = long_running < self._long_places
            job = next((job for job in queue if room_for_long or not self.is_long(job)), None)
            if job is not None:
                self._take(job)
                if adapter in self._queues:
                    self._queues.move_to_end(adapter)
                return job
        return None

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

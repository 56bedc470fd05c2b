"""The life of a child as a table, and how long to wait between two lives. Pure: no clock, no process.

stopped ──start──> starting ──/ready──> ready
starting, ready ──process ends──> backing off ──time──> starting
                                  └─ too many ends without ready ──> failed ──reload──> starting
any but stopped ──stop──> stopping ──process ends──> stopped
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlx_router.errors import SupervisorError


class State(StrEnum):
    """Of one child."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKING_OFF = "backing off"
    FAILED = "failed"


FOLLOWS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.READY, State.BACKING_OFF, State.FAILED, State.STOPPING}),
    State.READY: frozenset({State.BACKING_OFF, State.FAILED, State.STOPPING}),
    State.BACKING_OFF: frozenset({State.STARTING, State.STOPPING}),
    State.FAILED: frozenset({State.STARTING, State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
}


def check_step(before: State, after: State) -> None:
    """Raises SupervisorError for a step that the table does not have: a defect of ours."""
    if after not in FOLLOWS[before]:
        raise SupervisorError(f"a child cannot go from {before!r} to {after!r}")


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Exponential waiting with a limit. It begins anew after a life that was ready for `settle_s`."""

    first_s: float
    limit_s: float
    give_up_after: int  # ends in a row without having been ready
    settle_s: float
    _step: int = 0
    _failures: int = 0

    def ended(self, ready_s: float | None) -> float | None:
        """Seconds until the next start after a life that was ready for `ready_s`; None: give up."""
        if ready_s is None:
            self._failures += 1
        else:
            self._failures = 0
            if ready_s >= self.settle_s:
                self._step = 0
        if self._failures >= self.give_up_after:
            return None
        delay_s = min(self.first_s * 2.0 ** min(self._step, 60), self.limit_s)
        self._step += 1
        return delay_s

    def reset(self) -> None:
        """As if nothing had ended."""
        self._step = self._failures = 0

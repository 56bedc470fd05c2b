"""The table of states, and the back-off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.errors import SupervisorError
from mlx_router.supervisor.states import FOLLOWS, Backoff, State, check_step


def test_every_state_can_be_left_and_reached() -> None:
    assert set(FOLLOWS) == set(State)
    assert {state for follows in FOLLOWS.values() for state in follows} == set(State)
    for state in set(State) - {State.STOPPED, State.STOPPING}:
        assert State.STOPPING in FOLLOWS[state]


def test_a_step_outside_the_table_is_an_error() -> None:
    check_step(State.READY, State.BACKING_OFF)
    with pytest.raises(SupervisorError):
        check_step(State.STOPPED, State.READY)


def backoff() -> Backoff:
    return Backoff(first_s=0.5, limit_s=8.0, give_up_after=100, settle_s=60.0)


def test_it_doubles_up_to_the_limit_and_begins_anew_after_a_settled_life() -> None:
    waits = backoff()
    assert [waits.ended(None) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert waits.ended(3.0) == 8.0  # ready, but not for long
    assert waits.ended(61.0) == 0.5


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=200))
def test_never_longer_than_the_limit_and_given_up_only_without_a_ready_life(lives: list[float | None]) -> None:
    waits = Backoff(first_s=0.5, limit_s=8.0, give_up_after=4, settle_s=60.0)
    failures = 0
    for ready_s in lives:
        delay_s = waits.ended(ready_s)
        failures = 0 if ready_s is not None else failures + 1
        if failures >= 4:
            assert delay_s is None
        else:
            assert delay_s is not None
            assert 0.5 <= delay_s <= 8.0

"""Each deadline ends an attempt, and says which one it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mlx_router.gateway.clock import Alive, Clock, Timeouts

LONG_S = 60.0
SHORT_S = 0.06

Attempt = Callable[[Clock], Awaitable[Any]]


async def silence(clock: Clock) -> None:
    await asyncio.Event().wait()


def message(attempt: Attempt, *, alive: Alive | None = None, **times: float) -> str:
    """Why an attempt ended; "done" where it did by itself. Times that are not named are long."""
    names = ("connect_s", "first_byte_s", "idle_s", "total_s")
    timeouts = Timeouts(**{name: times.get(name, LONG_S) for name in names})

    async def main() -> str:
        clock = Clock(timeouts, asyncio.get_running_loop().time(), alive)
        try:
            async with asyncio.timeout(LONG_S / 6), clock.limit:
                await attempt(clock)
            return "done"
        except TimeoutError:
            assert clock.limit.expired()
            return clock.error().message
        finally:
            clock.stop()

    return asyncio.run(main())


def looks(*answers: bool) -> tuple[Alive, list[bool]]:
    """Says these, then is alive; and what it said."""
    said: list[bool] = []

    async def alive() -> bool:
        said.append(answers[len(said)] if len(said) < len(answers) else True)
        return said[-1]

    return alive, said


def test_no_first_byte() -> None:
    assert message(silence, first_byte_s=SHORT_S).startswith("first-byte time-out: nothing came for 0.")


def test_no_next_byte() -> None:
    async def one_byte(clock: Clock) -> None:
        clock.heard()
        await silence(clock)

    assert message(one_byte, idle_s=SHORT_S) == "idle time-out: the answer stopped for 0.06 s"


def test_bytes_keep_an_attempt_alive_up_to_the_total() -> None:
    async def trickle(clock: Clock) -> None:
        while True:
            clock.heard()
            await asyncio.sleep(SHORT_S / 10)

    assert message(trickle, idle_s=0.6, total_s=0.9) == "total time-out: the answer took more than 0.9 s"


def test_after_a_byte_the_first_one_has_come() -> None:
    async def one_byte(clock: Clock) -> None:
        clock.heard()
        await asyncio.sleep(SHORT_S * 2)

    assert message(one_byte, first_byte_s=SHORT_S) == "done"


def test_who_is_alive_may_take_longer_than_a_first_byte() -> None:
    alive, said = looks(True, True, False)
    assert message(silence, alive=alive, first_byte_s=SHORT_S).startswith("first-byte time-out")
    assert said == [True, True, False]


def test_nobody_takes_longer_than_the_total() -> None:
    alive, said = looks()
    assert message(silence, alive=alive, first_byte_s=SHORT_S, total_s=SHORT_S * 3.5).startswith("total time-out")
    assert len(said) <= 3


def test_a_look_without_an_answer_ends_with_the_total() -> None:
    async def alive() -> bool:
        await asyncio.Event().wait()
        return True

    assert message(silence, alive=alive, first_byte_s=SHORT_S, total_s=SHORT_S * 2).startswith("total time-out")


def test_after_the_head_nobody_asks() -> None:
    alive, said = looks(False)

    async def head_then_body(clock: Clock) -> None:
        clock.head()
        await asyncio.sleep(SHORT_S * 3)

    assert message(head_then_body, alive=alive, first_byte_s=SHORT_S) == "done"
    assert said == []
    assert message(head_then_body, alive=alive, first_byte_s=SHORT_S, total_s=SHORT_S * 2).startswith("total time-out")


@pytest.mark.parametrize("patient", [False, True])
def test_what_has_ended_leaves_nothing_behind(patient: bool) -> None:
    alive, said = looks(False)

    async def main() -> None:
        timeouts = Timeouts(connect_s=LONG_S, first_byte_s=SHORT_S, idle_s=LONG_S, total_s=LONG_S)
        clock = Clock(timeouts, asyncio.get_running_loop().time(), alive if patient else None)
        async with clock.limit:
            pass
        clock.stop()
        await asyncio.sleep(SHORT_S * 2)

    asyncio.run(main())
    assert said == []

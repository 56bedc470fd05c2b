"""One child's life, with real processes at the outer edge."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import psutil

from mlx_router.supervisor.states import State
from tests.unit.supervisor.conftest import FAST, Nursery


def test_ready_when_it_says_so_and_stopped_when_told(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child()
        child.start()
        await nursery.until(lambda: child.state is State.READY, "ready")
        assert child.serving
        assert child.look.details["adapters"] == ["a"]
        pid = child.pid
        assert pid is not None
        await child.stop()
        assert not psutil.pid_exists(pid)
        assert nursery.states == [State.STARTING, State.READY, State.STOPPING, State.STOPPED]
        assert "leaving" in child.log.path.read_text()

    play(story)


def test_a_killed_child_is_back_within_its_back_off(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child()
        child.start()
        await nursery.until(lambda: child.serving, "ready")
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        await nursery.until(lambda: child.state is State.BACKING_OFF, "noticed")
        assert child.reason == "ended by SIGKILL"
        await nursery.until(lambda: child.serving and child.pid != pid, "back")
        assert time.monotonic() - began < 5
        assert child.restarts == 1

    play(story)


def test_a_child_that_cannot_start_is_given_up_with_its_own_words_and_tried_again_on_demand(play) -> None:
    async def story(nursery: Nursery) -> None:
        (nursery.folder / "fail").touch()
        child = nursery.child()
        child.start()
        await nursery.until(lambda: child.state is State.FAILED, "given up")
        assert child.reason == "ended with status 1: this child cannot start"
        assert child.restarts == FAST.give_up_after - 1
        (nursery.folder / "fail").unlink()
        child.retry()
        await nursery.until(lambda: child.serving, "ready after all")

    play(story)


def test_a_command_that_does_not_exist_is_given_up_too(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child()
        child.spec = replace(child.spec, argv=("/nowhere/python",))
        child.start()
        await nursery.until(lambda: child.state is State.FAILED, "given up")
        assert "cannot be started" in child.reason

    play(story)


def test_a_stubborn_child_is_killed_after_drain_and_grace(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child("--stubborn")
        child.start()
        await nursery.until(lambda: child.serving, "ready")
        pid, began = child.pid, time.monotonic()
        assert pid is not None
        await child.stop()
        assert child.spec.drain_s + FAST.grace_s <= time.monotonic() - began < 5
        assert not psutil.pid_exists(pid)

    play(story)


def test_not_ready_is_said_and_is_no_reason_to_kill(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child()
        child.start()
        await nursery.until(lambda: child.serving, "ready")
        pid = child.pid
        (nursery.folder / "unready").write_text("loading")
        await nursery.until(lambda: not child.serving, "seen")
        assert (child.state, child.reason) == (State.READY, "engine: loading")
        looks = 0

        def looked() -> bool:
            nonlocal looks
            looks += 1
            return looks > 40  # twice unhealthy_s

        await nursery.until(looked, "time")
        assert child.pid == pid
        (nursery.folder / "unready").unlink()
        await nursery.until(lambda: child.serving, "ready again")
        assert child.restarts == 0

    play(story)


def test_a_sick_child_and_a_deaf_one_are_killed_and_started_again(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child()
        child.start()
        await nursery.until(lambda: child.serving, "ready")
        (nursery.folder / "unready").write_text("x")
        (nursery.folder / "sick").write_text("stalled")
        await nursery.until(lambda: child.state is State.BACKING_OFF, "killed")
        assert child.reason.startswith("killed: stalled")
        for name in ("sick", "unready"):
            (nursery.folder / name).unlink()
        await nursery.until(lambda: child.serving, "ready again")

    play(story)


def test_a_child_that_says_it_is_dead_is_not_waited_for(play) -> None:
    async def story(nursery: Nursery) -> None:
        settings = replace(FAST, unhealthy_s=600.0)
        child = nursery.child(settings=settings)
        child.start()
        await nursery.until(lambda: child.serving, "ready")
        (nursery.folder / "unready").write_text("x")
        (nursery.folder / "sick").write_text("dead")
        await nursery.until(lambda: child.state is State.BACKING_OFF, "killed")

    play(story)


def test_one_that_never_listens_is_killed_after_its_boot_time(play) -> None:
    async def story(nursery: Nursery) -> None:
        child = nursery.child(settings=replace(FAST, boot_timeout_s=0.3, give_up_after=1))
        child.spec = replace(child.spec, argv=("sleep", "600"))
        child.start()
        await nursery.until(lambda: child.state is State.FAILED, "killed")
        assert child.reason.startswith("killed: ")

    play(story)


def test_what_a_child_started_does_not_outlive_it(play) -> None:
    async def story(nursery: Nursery) -> None:
        note = nursery.folder / "grandchild"
        child = nursery.child(settings=replace(FAST, give_up_after=1))
        child.spec = replace(child.spec, argv=("sh", "-c", f"sleep 600 & echo $! > {note}; exit 3"))
        child.start()
        await nursery.until(lambda: child.state is State.FAILED, "ended")
        pid = int(note.read_text())
        await nursery.until(lambda: not psutil.pid_exists(pid) or zombie(pid), "gone")

    play(story)


def zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_stopping_while_it_waits_or_starts(play) -> None:
    async def story(nursery: Nursery) -> None:
        (nursery.folder / "fail").touch()
        child = nursery.child(settings=replace(FAST, backoff_first_s=60.0, backoff_limit_s=60.0))
        child.start()
        await nursery.until(lambda: child.state is State.BACKING_OFF, "waiting")
        await child.stop()
        assert child.state is State.STOPPED
        (nursery.folder / "fail").unlink()
        other = nursery.child()
        other.start()
        await other.stop()
        assert other.state is State.STOPPED
        assert other.pid is None

    play(story)

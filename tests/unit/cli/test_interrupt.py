"""Ctrl-C reaches long work even where Python dropped the exception."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from mlx_router.cli.bars import TaskBars
from mlx_router.cli.interrupt import Interrupt
from mlx_router.cli.progress import RichProgress


def drop_an_interrupt() -> None:
    """As a weak reference's callback does that runs during an import."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_dropped_interrupt_ends_a_training_run_at_its_next_step() -> None:
    with RichProgress() as progress:
        advance = progress.encoding(10)
        advance(1)
        drop_an_interrupt()
        with pytest.raises(KeyboardInterrupt):
            advance(1)


def test_a_dropped_interrupt_ends_tasks_at_their_next_step() -> None:
    with TaskBars() as bars:
        bars.draw("adapter", 1, 10, "")
        drop_an_interrupt()
        with pytest.raises(KeyboardInterrupt):
            bars.draw("adapter", 2, 10, "")


def test_the_signal_raises_at_once_and_its_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_ignores_the_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            interrupt.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

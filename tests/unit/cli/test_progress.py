"""What long work says of itself where stderr is no terminal."""

from __future__ import annotations

import pytest

from mlx_router.cli.bars import TaskBars
from mlx_router.cli.progress import RichProgress
from mlx_router.training.fit import EpochLog


def test_a_training_run_writes_a_line_when_a_phase_begins_each_tenth_and_when_it_ends(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with RichProgress() as progress:
        encoded = progress.encoding(1000)
        assert capfd.readouterr().err == "encoding: 0 of 1000  prompts\n"  # before the first batch, not after it
        for _ in range(125):
            encoded(8)
        assert capfd.readouterr().err.splitlines() == [
            *(f"encoding: {done} of 1000  prompts" for done in (104, 200, 304, 400, 504, 600, 704, 800, 904)),
            "encoding: done, 1000 of 1000  prompts",
        ]
        fitted = progress.ngrams(2)
        fitted()
        trained = progress.epochs(2)
        trained(EpochLog(1, 1, 0.5, 0.7))
        trained(EpochLog(1, 2, 0.25, 0.8))
        fitted()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "n-grams: 0 of 2  fits",
        "n-grams: 1 of 2  fits",
        "training: 0 of 2  epochs",
        "training: 1 of 2  loss 0.500  valid macro-F1 0.700",
        "training: done, 2 of 2  loss 0.250  valid macro-F1 0.800",
        "n-grams: done, 2 of 2  fits",
    ]


def test_what_is_cached_is_done_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with RichProgress() as progress:
        progress.encoding(50)(50)
        progress.encoding(0)(0)
    assert capfd.readouterr().err.splitlines() == ["encoding: 0 of 50  prompts", "encoding: done, 50 of 50  prompts"]


def test_a_task_writes_its_beginning_and_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    with TaskBars() as bars:
        for done in range(1, 21):
            bars.draw("[an adapter]", done, 20, "n" * 90)
        bars.draw("[an adapter]", 20, 20, "n" * 90)
    note = "n" * 90
    assert capfd.readouterr().err.splitlines() == [
        f"[an adapter]: 1 of 20  {note}",
        f"[an adapter]: done, 20 of 20  {note}",
    ]

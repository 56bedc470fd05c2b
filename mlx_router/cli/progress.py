"""Progress bars of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlx_router.cli.bars import Bars

if TYPE_CHECKING:
    from mlx_router.training.fit import EpochLog


class RichProgress(Bars):
    """A bar for each thing that training does."""

    def __init__(self) -> None:
        super().__init__(
            Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
        )

    def encoding(self, total: int) -> Callable[[int], None]:
        """A bar of prompts."""
        task = self._progress.add_task("encoding", total=total, note="prompts")

        def advance(count: int) -> None:
            self._interrupt.check()
            self._progress.advance(task, count)

        return advance

    def ngrams(self, total: int) -> Callable[[], None]:
        """A bar of n-gram models: one to measure with, one to serve."""
        task = self._progress.add_task("n-grams", total=total, note="fits")

        def advance() -> None:
            self._interrupt.check()
            self._progress.advance(task)

        return advance

    def epochs(self, total: int) -> Callable[[EpochLog], None]:
        """A bar of epochs with what each reached."""
        task = self._progress.add_task("training", total=total, note="epochs")

        def advance(entry: EpochLog) -> None:
            self._interrupt.check()
            note = f"loss {entry.loss:.3f}  valid macro-F1 {entry.valid_macro_f1:.3f}"
            self._progress.update(task, advance=1, note=note)

        return advance

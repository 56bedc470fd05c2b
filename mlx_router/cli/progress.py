"""Progress bars of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mlx_router.cli.bars import Bars

if TYPE_CHECKING:
    from mlx_router.training.fit import EpochLog


class RichProgress(Bars):
    """A bar for each thing that training does; a line each tenth of it where stderr is no terminal."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            lines=10,
        )

    def encoding(self, total: int) -> Callable[[int], None]:
        """A bar of prompts."""
        advance = self._begin("encoding", total, "prompts")
        return lambda count: advance(count, "prompts")

    def ngrams(self, total: int) -> Callable[[], None]:
        """A bar of n-gram models: one to measure with, one to serve."""
        advance = self._begin("n-grams", total, "fits")
        return lambda: advance(1, "fits")

    def epochs(self, total: int) -> Callable[[EpochLog], None]:
        """A bar of epochs with what each reached."""
        advance = self._begin("training", total, "epochs")
        return lambda entry: advance(1, f"loss {entry.loss:.3f}  valid macro-F1 {entry.valid_macro_f1:.3f}")

    def _begin(self, task: str, total: int, note: str) -> Callable[[int, str], None]:
        done = 0
        self.draw(task, done, total, note)

        def advance(count: int, note: str) -> None:
            nonlocal done
            done += count
            self.draw(task, done, total, note)

        return advance

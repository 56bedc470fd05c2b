"""Progress bars on stderr, so that stdout stays for results; Ctrl-C ends the work behind them."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mlx_router.cli.interrupt import Interrupt


class Bars:
    """Drawn while entered. Whoever moves a bar asks `_interrupt` first."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._interrupt = Interrupt()

    def __enter__(self) -> Self:
        self._interrupt.__enter__()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._interrupt.__exit__(kind, error, trace)


class TaskBars(Bars):
    """A bar a task, made when it is first heard of; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._tasks: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        super().__init__(
            Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                disable=not self._console.is_terminal,
            )
        )

    def draw(self, task: str, done: int, total: int, note: str) -> None:
        """Task `task` is at `done` of `total`."""
        self._interrupt.check()
        if not self._console.is_terminal:
            if done >= total and task not in self._finished:
                self._finished.add(task)
                self._console.print(f"{task}: done  {note}", highlight=False)
            return
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)

"""Progress on stderr, so that stdout stays for results; Ctrl-C ends the work behind it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from mlx_router.cli.interrupt import Interrupt


class Bars:
    """A bar a task, made when it is first heard of; plain lines where stderr is no terminal. Drawn while entered."""

    def __init__(self, *columns: ProgressColumn | str, lines: int) -> None:
        """`lines` is how many a task gets where stderr is no terminal, after the one that says that it begins."""
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._interrupt = Interrupt()
        self._tasks: dict[str, TaskID] = {}
        self._lines = lines
        self._written: dict[str, int] = {}  # how many of its lines a task has

    def __enter__(self) -> Self:
        self._interrupt.__enter__()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._interrupt.__exit__(kind, error, trace)

    def draw(self, task: str, done: int, total: int, note: str) -> None:
        """Task `task` is at `done` of `total`. Raises KeyboardInterrupt after a Ctrl-C."""
        self._interrupt.check()
        if not self._console.is_terminal:
            self._write(task, done, total, note)
            return
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)

    def _write(self, task: str, done: int, total: int, note: str) -> None:
        due = self._lines if done >= total else self._lines * done // total
        if due <= self._written.get(task, -1):
            return
        self._written[task] = due
        text = f"{task}: {'done, ' if done >= total else ''}{done} of {total}  {note}"
        self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


class TaskBars(Bars):
    """A bar for each adapter that is trained, or whatever else has a name of its own."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            lines=1,
        )

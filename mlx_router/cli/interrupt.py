"""Ctrl-C that long work cannot miss.

Python drops a KeyboardInterrupt that is raised inside a finalizer or a weak reference's callback, and every import runs
some of those. So the signal is also remembered, and long work asks at each step of its progress bar.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """While entered, SIGINT raises KeyboardInterrupt as always, and `check` raises it again where that was dropped."""

    def __init__(self) -> None:
        self._seen = False
        self._before: signal.Handlers | object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # what signal.signal gave

    def check(self) -> None:
        """Raise KeyboardInterrupt if the signal has come."""
        if self._seen:
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

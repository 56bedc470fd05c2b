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
    """While entered, SIGINT raises KeyboardInterrupt as always, and `check` raises it again where that was dropped.

    Only Python's own handler is stood in for: a background job that ignores SIGINT goes on ignoring it.
    """

    def __init__(self) -> None:
        self._seen = False
        self._installed = False

    def __enter__(self) -> Self:
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._arrived)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if the signal has come."""
        if self._seen:
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

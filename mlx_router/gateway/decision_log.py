"""One JSON line a request in $HOME/log/decisions.jsonl, rotated by size. It never holds up or fails a request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FLUSH_S = 0.25


class DecisionLog:
    """Lines are collected on the event loop and written by one thread."""

    def __init__(self, path: Path, *, max_bytes: int, files: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = max(1, files)
        self._pending: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="decision-log")
        self._recent: deque[str] = deque(maxlen=keep)
        self.lost = 0  # lines that could not be written
        self.error = ""  # why, while that lasts

    def add(self, line: str) -> None:
        """Note one request: a JSON object on one line."""
        self._recent.append(line)
        self._pending.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def recent(self, limit: int) -> list[Any]:
        """The last requests, newest first."""
        lines = list(self._recent)[-limit:]
        return [json.loads(line) for line in reversed(lines)]

    async def close(self) -> None:
        """Write what is pending."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        await asyncio.get_running_loop().run_in_executor(self._writer, lambda: None)
        self._writer.shutdown(wait=False)

    def _flush(self) -> None:
        self._timer = None
        lines, self._pending = self._pending, []
        if lines:
            self._writer.submit(self._write, lines)

    def _write(self, lines: list[str]) -> None:
        data = ("\n".join(lines) + "\n").encode("utf-8", "replace")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", buffering=0, opener=_private) as file:
                start = file.tell()
                try:
                    written = file.write(data)
                    if written != len(data):
                        raise OSError("the disk took a part of it")
                except OSError:
                    with suppress(OSError):
                        file.truncate(start)  # no half lines
                    raise
            if start + len(data) >= self._max_bytes:
                self._rotate()
        except OSError as error:
            self.lost += len(lines)
            if not self.error:
                log.error("event=decision_log_failed error=%s", error.strerror or error)
            self.error = error.strerror or str(error)
        else:
            if self.error:
                log.info("event=decision_log_recovered lost=%d", self.lost)
            self.error = ""

    def _rotate(self) -> None:
        """decisions.jsonl -> decisions.jsonl.1 -> …; at most `files` in all."""
        for number in range(self._files - 1, 0, -1):
            source = self._path if number == 1 else self._numbered(number - 1)
            if source.exists():
                source.replace(self._numbered(number))
        if self._files == 1:
            self._path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _private(path: str, flags: int) -> int:
    """Open for this user alone, as the other logs are: prompts may be in it."""
    return os.open(path, flags, 0o600)

"""A log file with rotation that never stands in the way of what it logs."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

KEEP_LINES = 20  # of the end, for the reason of a failure
_RETRY_BYTES = 2**16  # after a failed write, this much is dropped before the next try


class RotatingLog:
    """`name.log`, then `name.log.1` … `name.log.<files - 1>`, oldest last. Bytes in, nothing raised.

    What cannot be written, because the disk is full or the folder is gone, is counted in `lost_bytes` and said in
    `error`; the next writes try again.
    """

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path = path
        self.error = ""
        self.lost_bytes = 0
        self._max_bytes = max_bytes
        self._files = files
        self._file: int | None = None
        self._size = 0
        self._mute_bytes = 0
        self._tail: deque[str] = deque(maxlen=KEEP_LINES)
        self._partial = b""

    def write(self, data: bytes) -> None:
        """Append; rotates before a file gets too long."""
        self._remember(data)
        if self._mute_bytes > 0:
            self._mute_bytes -= len(data)
            self.lost_bytes += len(data)
            return
        try:
            self._append(data)
            self.error = ""
        except OSError as error:
            self.error = error.strerror or str(error)
            self.lost_bytes += len(data)
            self._mute_bytes = _RETRY_BYTES
            self.close()

    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._tail)

    def forget(self) -> None:
        """Begin the tail anew: a new process writes from now on."""
        self._tail.clear()
        self._partial = b""
        self._mute_bytes = 0

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._file).st_size
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
            self._append(data)
            return
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            self._size += written
            view = view[written:]

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            source = self.path if number == 1 else self._numbered(number - 1)
            if source.exists():
                source.replace(self._numbered(number))
        if self._files == 1:
            self.path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _remember(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data[-(2**16) :]).split(b"\n")
        self._partial = self._partial[-4096:]
        self._tail.extend(line[:4096].decode("utf-8", "replace") for line in lines if line.strip())

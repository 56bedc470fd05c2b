"""Server-sent events: one JSON object a `data:` line, then `data: [DONE]`; and a reader of the same."""

from __future__ import annotations

import json
from typing import Any

from mlx_router.protocol.envelope import error_body

DONE = b"data: [DONE]\n\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # no proxy may hold a stream back


def event(data: dict[str, Any]) -> bytes:
    """One event. JSON has no raw line breaks, so one line is enough."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: BaseException) -> bytes:
    """What a client gets when a stream that has begun cannot go on; no [DONE] follows."""
    return event(error_body(error)[2])


class SSEReader:
    """Split a byte stream into events: `feed` returns the data of every event that the bytes complete.

    Knows CR, LF and CRLF, several data lines an event, comments, and pieces cut anywhere.
    `max_bytes` bounds an event that never ends: ValueError.
    """

    def __init__(self, max_bytes: int = 16 * 2**20) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._held = 0  # bytes in _data
        self._max_bytes = max_bytes
        self._after_cr = False

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events completed by `piece`, in order."""
        if not piece:
            return []
        ends_in_cr = piece.endswith(b"\r")
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = ends_in_cr
        self._buffer += piece
        if len(self._buffer) + self._held > self._max_bytes:
            raise ValueError(f"an event of more than {self._max_bytes} bytes")
        if b"\n" not in piece and b"\r" not in piece:
            return []
        lines = bytes(self._buffer).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = bytearray(lines.pop())
        events: list[str] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._held = [], 0
            elif line == b"data" or line.startswith(b"data:"):
                value = line[5:].removeprefix(b" ")
                self._data.append(value)
                self._held += len(value)
        return events

"""The head of an answer and the beginning of its body in one packet."""

from __future__ import annotations

import asyncio

COPIED_BYTES = 65_536  # a larger piece fills packets of its own


class HeadWithBody(asyncio.Transport):
    """The transport of one answer: what is written first, the head, waits for what is written next, or for the end.

    uvicorn writes a head at once, which costs a system call and a packet of its own. ASGI would not let it: "The
    protocol server must not start sending the response to the client until it has received at least one Response Body
    event." Source: asgi.readthedocs.io/en/latest/specs/www.html, Response Start.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._head: bytes | None = None  # empty once it is written

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """The head, then pieces of the body."""
        if self._head is None:
            self._head = data
            return
        if self._head:
            head, self._head = self._head, b""
            if len(data) <= COPIED_BYTES:
                data = head + data
            else:
                self._transport.write(head)
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection, after a head whose body failed."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()

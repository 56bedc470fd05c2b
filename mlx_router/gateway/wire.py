"""uvicorn's HTTP protocol with what it leaves out: limits on headers, slow clients, and word of a lost client.

A client has `client_timeout_s` to send a request and as long to take what waits for it; then it is cut. The
task that answers is told at once when its client goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_router.errors import InvalidRequest, Overloaded, RouterError
from mlx_router.http.connection import Connection
from mlx_router.protocol import envelope

CONNECTION = "mlx_router.connection"  # key of the scope


@dataclass(slots=True, kw_only=True)
class WireLimits:
    """Read at every connection, so that a reload counts for the next one."""

    header_bytes: int
    connections: int
    client_timeout_s: float
    on_event: Callable[[str], None] = lambda event: None


class HeadersTooLarge(InvalidRequest):
    """Request line and headers are over the limit."""

    status, code = 431, "headers_too_large"


class RequestTimeout(InvalidRequest):
    """The client did not send its request in time."""

    status, code = 408, "request_timeout"


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class GuardedProtocol(Connection):
    """One client connection. `limits` is set on a subclass by the server."""

    limits: WireLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._request_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unheard_bytes = 0  # since the last byte of a body, or the last head: headers, trailers, chunk extensions
        self._in_headers = False
        self._incomplete = False  # a request has begun to arrive

    # --- what the application uses ------------------------------------------------------------------------

    def watch(self, task: asyncio.Task[Any]) -> None:
        """Cancel this task when the client goes away."""
        self._tasks.add(task)

    def unwatch(self, task: asyncio.Task[Any]) -> None:
        """The task is done with the client."""
        self._tasks.discard(task)

    # --- asyncio's protocol -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.limits.on_event("connection_refused")
            self._refuse(Overloaded("too many connections", retry_after_s=1.0), status=503)
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._stop_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)
        for task in tuple(self._tasks):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._unheard_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._incomplete and self._unheard_bytes > self.limits.header_bytes:
            self._too_large()
        elif self._request_timer is None and (self._incomplete or self.cycle is None or self.cycle.response_complete):
            self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.client_timeout_s, self._slow_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # --- httptools' callbacks -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self._in_headers = self._incomplete = True

    def on_headers_complete(self) -> None:
        self._unheard_bytes = 0
        if sum(len(name) + len(value) for name, value in self.headers) > self.limits.header_bytes:
            self._too_large()
            return
        self._in_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unheard_bytes = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete = False
        self._unheard_bytes = 0
        self._stop_timer()
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    # --- limits -------------------------------------------------------------------------------------------

    def _expect_request(self) -> None:
        self._request_timer = self.loop.call_later(self.limits.client_timeout_s, self._slow_sender)

    def _stop_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _too_large(self) -> None:
        self.limits.on_event("headers_too_large")
        if self._in_headers:
            self._refuse(HeadersTooLarge(f"headers of more than {self.limits.header_bytes} bytes"))
        else:
            self.transport.close()  # trailers: an answer may be on its way

    def _slow_sender(self) -> None:
        self._request_timer = None
        if self.transport.is_closing():
            return
        self.limits.on_event("slow_client")
        if self._in_headers:
            self._refuse(RequestTimeout("the request did not arrive in time"))
        else:
            self.transport.close()

    def _slow_reader(self) -> None:
        self._write_timer = None
        self.limits.on_event("slow_client")
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What httptools could not parse, in our envelope."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer is on its way; nothing may be written into it
        elif not self.transport.is_closing():
            self._refuse(InvalidRequest("this is not HTTP/1.1"))

    def _refuse(self, error: RouterError, status: int | None = None) -> None:
        """Answer without the application, and close."""
        code, headers, body = envelope.error_body(error)
        payload = envelope.encode(body)
        lines = [
            f"HTTP/1.1 {status or code} {error.code}",
            "content-type: application/json",
            f"content-length: {len(payload)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        self.transport.close()

"""The edge of the HTTP server: request ids, who may come in, body limit, and errors that the framework makes."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from mlx_router.errors import BodyTooLarge, RouterError
from mlx_router.protocol.envelope import encode, error_body
from mlx_router.specialist.mail import ClientGone

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OPEN_PATHS = frozenset({"/health", "/ready"})  # a supervisor on another machine has no key
SEND_TIMEOUT_S = 60.0  # for a client that reads nothing


class Edge:
    """The outermost ASGI application. `check(client, headers)` raises for clients that may not come in."""

    def __init__(self, app: App, *, check: Callable[[str | None, Mapping[str, str]], None]) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope["request_id"] = request_id_of(headers)
        begun = False

        async def with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                self._check(client_of(scope), headers)
            await self._app(scope, receive, with_id)
        except ClientGone:
            return
        except RouterError as error:
            await send_error(with_id, error)
        except Exception as error:
            log.exception("request=%s path=%s failed", request_id, scope["path"])
            if begun:
                raise
            await send_error(with_id, error)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own x-request-id if it is printable and short, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def client_of(scope: Scope) -> str | None:
    """The peer's address; None for a Unix socket."""
    client = scope.get("client")
    return client[0] if client else None


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as that is certain, and ClientGone."""
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes, the limit is {limit_bytes}")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise BodyTooLarge(f"the body has more than {limit_bytes} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Return when the client closes its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_bytes(send: Send, body: bytes, *, more: bool) -> None:
    """A piece of the body. Raises ClientGone for a client that takes nothing for SEND_TIMEOUT_S."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ClientGone from None


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Status and headers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_json(send: Send, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
    """A whole JSON answer."""
    data = encode(body)
    fixed = {"content-type": "application/json", "content-length": str(len(data))}
    await send_head(send, status, {**fixed, **(headers or {})})
    await send_bytes(send, data, more=False)


async def send_error(send: Send, error: BaseException) -> None:
    """The envelope of an exception."""
    status, headers, body = error_body(error)
    if isinstance(error, BodyTooLarge):
        headers["connection"] = "close"  # the rest of the body is not read
    await send_json(send, status, body, headers)

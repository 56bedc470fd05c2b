"""The outermost ASGI application: checks every request, answers the hot routes itself, leaves the rest to `app`.

A chat request passes here through as few layers as possible; what FastAPI would add to it is measured in tenths
of a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlx_router.errors import BodyTooLarge, InvalidRequest, Overloaded, RouterError
from mlx_router.gateway import security
from mlx_router.gateway.body import decode, model_of
from mlx_router.gateway.choose import Choice, choose
from mlx_router.gateway.forward import Job, decision_headers
from mlx_router.gateway.record import record
from mlx_router.gateway.relay import Headers, Send
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.wire import CONNECTION, ClientGone
from mlx_router.protocol import envelope, sse

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOT = {"/v1/chat/completions": "/chat/completions", "/v1/completions": "/completions"}
COUNTED = frozenset({"/v1/embeddings", "/v1/route"})  # not hot, and bounded by max_requests all the same
DISCARD_BYTES = 64 * 2**20  # of a body that is too large
DISCARD_S = 2.0
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_PASSED_ON = {b"accept": "accept", b"traceparent": "traceparent", b"tracestate": "tracestate"}


class Edge:
    """ASGI 3. `is_static` says which paths are the page's own files."""

    def __init__(self, gateway: Gateway, app: App, is_static: Callable[[str], bool] = lambda path: False) -> None:
        self._gateway = gateway
        self._app = app
        self._is_static = is_static

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        method: str = scope["method"]
        headers = scope["headers"]
        request_id = request_id_of(headers)
        scope["mlx_router.request_id"] = request_id
        try:
            if path not in security.PUBLIC and not self._is_static(path):
                self._gateway.setup.guard.check(headers, method)
            if path not in HOT and path not in COUNTED:
                await self._app(scope, receive, _with_request_id(send, request_id))
                return
            if path in HOT and method != "POST":
                await send_json(send, 405, envelope.status_body(405, "use POST"), [(b"allow", b"POST")], request_id)
                return
            if self._gateway.active >= self._gateway.setup.config.gateway.max_requests:
                self._gateway.count("too_many_requests")
                raise Overloaded("too many requests at once", retry_after_s=1.0)
        except RouterError as error:
            await send_error(send, error, request_id)
            return
        self._gateway.active += 1
        connection = scope.get(CONNECTION)
        task = asyncio.current_task()
        if connection is not None and task is not None:
            connection.watch(task)
        try:
            if path in HOT:
                await self._complete(HOT[path], headers, request_id, receive, send, connection)
            else:
                await self._app(scope, receive, _with_request_id(send, request_id))
        except asyncio.CancelledError:
            if connection is None or not connection.lost:
                raise
        finally:
            self._gateway.active -= 1
            if connection is not None and task is not None:
                connection.unwatch(task)

    async def _complete(
        self, path: str, headers: Headers, request_id: str, receive: Receive, send: Send, connection: Any
    ) -> None:
        """One chat or plain completion, from the client's bytes to its answer and the decision log."""
        gateway = self._gateway
        setup = gateway.setup  # the same one throughout, whatever is reloaded meanwhile
        started = time.perf_counter()
        began = asyncio.get_running_loop().time()
        requested: str | None = None  # the model that the client named, whether there is one or not
        choice: Choice | None = None
        job: Job | None = None
        error: BaseException | None = None
        try:
            raw = await read_body(headers, receive, setup.config.gateway.body_limit_bytes)
            read_at = time.perf_counter()
            body = decode(raw)
            model = model_of(body)
            requested = model or "auto"
            choice = await choose(gateway, setup, path, body, model, len(raw), headers)
            passed, authorization = _upstream_headers(headers, request_id)
            if setup.guard.has_keys:
                authorization = f"Bearer {setup.guard.credential}"
            job = Job(
                request_id=request_id,
                path=path,
                raw=raw,
                body=body,
                headers=passed,
                authorization=authorization,
                plan=choice.plan,
                started=began,
                read_at=read_at,
                conversation=choice.endpoint,
                extra_headers=[(b"x-request-id", request_id.encode())],
            )
            await gateway.forwarder.run(job, setup.fleet, send)
        except RouterError as failure:
            error = failure
            await self._send_failure(send, failure, request_id, choice, job)
        except ClientGone:
            error = ClientGone()
        except asyncio.CancelledError:
            if connection is None or not connection.lost:
                # The server's patience with running answers is over.
                error = Overloaded("the gateway is shutting down", retry_after_s=1.0)
                if job is not None and job.begun:
                    await send({"type": "http.response.body", "body": sse.error_event(error)})
                else:
                    await self._send_failure(send, error, request_id, choice, job)
            else:
                error = ClientGone()
                gateway.count("client_gone")
        except Exception as failure:
            log.exception("event=request_failed request_id=%s", request_id)
            error = failure
            if job is not None and job.begun:
                raise
            await self._send_failure(send, failure, request_id, choice, job)
        finally:
            seconds = time.perf_counter() - started
            record(gateway, setup.config, path, request_id, requested, choice, job, error, seconds)

    async def _send_failure(
        self, send: Send, error: BaseException, request_id: str, choice: Choice | None, job: Job | None
    ) -> None:
        extra: Headers = []
        if choice is not None:
            decision = job.decision if job is not None else choice.plan.decision
            extra = decision_headers(decision, "none", "none", job.notes if job is not None else [])
        await send_error(send, error, request_id, extra)


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises BodyTooLarge, InvalidRequest, ClientGone."""
    for name, value in headers:
        if name == b"content-length" and int(value[:18]) > limit:
            await _discard(headers, receive)
            raise BodyTooLarge(f"the body is larger than {limit} bytes")
        if name == b"content-encoding" and value.lower() != b"identity":
            raise InvalidRequest("content-encoding is not supported")
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientGone
    if len(body) > limit:
        await _discard(headers, receive)
        raise BodyTooLarge(f"the body is larger than {limit} bytes")
    return body


async def _discard(headers: Headers, receive: Receive) -> None:
    """Read on for a moment: a client that is still sending would see a reset instead of the answer."""
    if any(name == b"expect" for name, _ in headers):
        return
    left = DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            more = True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = bool(message.get("more_body", False))


def request_id_of(headers: Headers) -> str:
    """The client's own x-request-id if it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return f"req-{random.getrandbits(96):024x}"


async def send_json(send: Send, status: int, body: dict[str, Any], headers: Headers, request_id: str) -> None:
    """A whole JSON answer."""
    payload = envelope.encode(body)
    start = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(payload)),
        (b"x-request-id", request_id.encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": payload})


async def send_error(send: Send, error: BaseException, request_id: str, extra: Headers | None = None) -> None:
    """The envelope of an error; anything that is not ours is a mute 500."""
    status, headers, body = envelope.error_body(error)
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if isinstance(error, BodyTooLarge):
        pairs.append((b"connection", b"close"))  # the rest of the body is not read
    await send_json(send, status, body, [*pairs, *(extra or ())], request_id)


def _upstream_headers(headers: Headers, request_id: str) -> tuple[dict[str, str], str]:
    """What goes on to an endpoint, and the client's authorization apart."""
    passed = {"content-type": "application/json", "x-request-id": request_id}
    authorization = ""
    for name, value in headers:
        if name in _PASSED_ON:
            passed[_PASSED_ON[name]] = value.decode("latin-1")
        elif name == b"authorization":
            authorization = value.decode("latin-1")
    return passed, authorization


def _with_request_id(send: Send, request_id: str) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
        await send(message)

    return wrapped

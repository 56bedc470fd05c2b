"""One attempt at one endpoint: send the request, pass the answer through as it comes.

Nothing is sent to the client before the endpoint's first byte is there, so that a failure up to then can be
tried elsewhere. A stream passes in whole events: if the endpoint dies in the middle of one, the client has seen
only whole ones, and the error event that follows can be read.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from yarl import URL

from mlx_router.errors import RouterError, UpstreamTimeout, UpstreamUnavailable
from mlx_router.gateway.clock import Alive, Clock, Timeouts
from mlx_router.gateway.upstreams import Endpoint
from mlx_router.http.exchange import describe, read_whole
from mlx_router.protocol import sse

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_ANSWER_BYTES = 64 * 2**20  # of an answer that is not a stream
MAX_EVENT_BYTES = 4 * 2**20  # an event that never ends is passed on in pieces from here

# Of the endpoint's headers; the others describe its connection, or are ours to say.
_DROPPED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade content-length"
    b" date server set-cookie x-request-id".split()
)
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})')


@dataclass(slots=True, kw_only=True)
class Answer:
    """What became of an attempt."""

    kind: Literal["sent", "refused", "failed"]  # refused: an answer is held back; failed: there is none
    status: int = 0
    streams: bool = False  # the client has the head of an event stream
    reached: bool = True  # the request was sent, or part of it
    error: RouterError | None = None  # of a failed attempt, or of a stream that broke off
    headers: Headers | None = None
    body: bytes = b""  # of a refused attempt
    adapter: str = ""  # as the specialist reports it
    first_byte_s: float = 0.0  # since the request was sent
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What is sent where, and how its answer begins."""

    endpoint: Endpoint
    path: str  # below /v1
    body: bytes
    headers: dict[str, str]
    started: float  # loop time at which the request came, for the total time-out
    hold: Callable[[int], bool]  # whether a status may be tried elsewhere
    begin: Callable[[Answer], Headers]  # our headers, once the answer's own are known
    alive: Alive | None = None  # asked where a first byte tells nothing, in place of its time-out


class Relay:
    """Attempts over one connection pool."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: Timeouts) -> None:
        self._session = session
        self.set_timeouts(timeouts)
        self._urls: dict[tuple[str, str], URL] = {}

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """For attempts that begin from now on."""
        self.timeouts = timeouts
        self._socket_timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s)

    async def run(self, attempt: Attempt, send: Send) -> Answer:
        """Try once. Cancelling it closes the connection to the endpoint, which ends its work there too."""
        endpoint = attempt.endpoint
        endpoint.in_flight += 1
        clock = Clock(self.timeouts, attempt.started, attempt.alive)
        response: aiohttp.ClientResponse | None = None
        answer = Answer(kind="failed")
        try:
            async with clock.limit:
                response = await self._post(attempt)
                await self._pass(attempt, response, answer, clock, send)
        except aiohttp.ConnectionTimeoutError:
            answer.reached = False
            answer.error = UpstreamTimeout(f"connect time-out: {self.timeouts.connect_s:g} s")
        except TimeoutError:
            answer.error = clock.error()
        except (aiohttp.ClientError, OSError) as error:
            answer.reached = not isinstance(error, aiohttp.ClientConnectorError)
            answer.error = UpstreamUnavailable(describe(error))
        finally:
            endpoint.in_flight -= 1
            clock.stop()
            if response is not None and not response.content.is_eof():
                response.close()
        if answer.streams and answer.error is not None:
            await _break_off(answer.error, send)
        return answer

    async def _post(self, attempt: Attempt) -> aiohttp.ClientResponse:
        endpoint = attempt.endpoint
        url = self._urls.get((endpoint.url, attempt.path))
        if url is None:
            url = self._urls[(endpoint.url, attempt.path)] = URL(f"{endpoint.url}/v1{attempt.path}")
        return await self._session.post(
            url,
            data=attempt.body,
            headers=attempt.headers,
            allow_redirects=False,
            timeout=self._socket_timeout,
        )

    async def _pass(
        self, attempt: Attempt, response: aiohttp.ClientResponse, answer: Answer, clock: Clock, send: Send
    ) -> None:
        clock.head()
        answer.status = response.status
        answer.headers = [pair for pair in response.raw_headers if _ours_to_pass(pair[0])]
        answer.adapter = response.headers.get("x-adapter", "")
        if response.status == 200 and response.content_type == "text/event-stream":
            await self._stream(attempt, response, answer, clock, send)
        else:
            body = await read_whole(response, MAX_ANSWER_BYTES)
            if attempt.hold(response.status):
                answer.kind, answer.body = "refused", body
                return
            answer.kind, answer.first_byte_s = "sent", clock.elapsed()
            _count_tokens(answer, body[-4096:])
            headers = [*attempt.begin(answer), *answer.headers, (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, attempt: Attempt, response: aiohttp.ClientResponse, answer: Answer, clock: Clock, send: Send
    ) -> None:
        reader = response.content
        pieces = await reader.readany()
        clock.heard()
        if not pieces:
            raise aiohttp.ClientPayloadError("the stream ended before it began")
        answer.kind, answer.first_byte_s = "sent", clock.elapsed()
        answer.streams = True
        headers = [*attempt.begin(answer), *(answer.headers or ())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        held = b""  # the beginning of an event that is not complete
        finished = False
        while pieces:
            whole, held = split_events(held + pieces if held else pieces)
            if whole:
                finished = finished or b"[DONE]" in whole[-64:]
                if b'"prompt_tokens"' in whole:
                    _count_tokens(answer, whole)
                await send({"type": "http.response.body", "body": whole, "more_body": True})
                clock.heard()
            pieces = await reader.readany()
            clock.heard()
        if not finished and response.headers.get("transfer-encoding") is None and response.content_length is None:
            raise aiohttp.ClientPayloadError("the connection was closed before [DONE]")
        await send({"type": "http.response.body", "body": held})


def split_events(data: bytes) -> tuple[bytes, bytes]:
    """(whole events, the rest). Joined they are `data`; the first part ends after a blank line or is empty."""
    if data.endswith(b"\n\n") or data.endswith(b"\r\n\r\n"):
        return data, b""
    end = 0
    for mark in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        at = data.rfind(mark)
        if at >= 0:
            end = max(end, at + len(mark))
    if end == 0 and len(data) > MAX_EVENT_BYTES:
        return data, b""
    return data[:end], data[end:]


async def _break_off(error: RouterError, send: Send) -> None:
    """End a stream that has begun with an event that says why."""
    await send({"type": "http.response.body", "body": sse.error_event(error)})


def _ours_to_pass(name: bytes) -> bool:
    lowered = name.lower()
    return lowered not in _DROPPED and not lowered.startswith((b"x-router-", b"access-control-"))


def _count_tokens(answer: Answer, data: bytes) -> None:
    """Take the usage out of the last bytes of an answer."""
    prompt, completion = _PROMPT_TOKENS.findall(data), _COMPLETION_TOKENS.findall(data)
    if prompt:
        answer.prompt_tokens = int(prompt[-1])
    if completion:
        answer.completion_tokens = int(completion[-1])

"""A server's answer as a whole, and a failed exchange in words."""

from __future__ import annotations

import json

import aiohttp


class AnswerTooLarge(aiohttp.ClientPayloadError):
    """The body has more bytes than the caller takes."""


async def read_whole(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body to its end; one `read(n)` of the stream would return what the first packet brought.

    Raises ClientPayloadError where it breaks off, AnswerTooLarge over `limit_bytes`.
    """
    length = response.content_length
    if length is not None and length <= limit_bytes:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit_bytes:
            raise AnswerTooLarge("the answer is too large")
    return b"".join(parts)


def describe(error: BaseException) -> str:
    """Why there is no answer, without addresses: clients need not know them."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection refused" if isinstance(error.os_error, ConnectionRefusedError) else "cannot be reached"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionResetError):
        return "the connection broke off"
    if isinstance(error, AnswerTooLarge):
        return "the answer is too large"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it does not speak JSON"
    if type(error) is ValueError:
        return str(error)
    return f"the exchange failed ({type(error).__name__})"

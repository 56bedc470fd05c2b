"""A server's answer as a whole."""

from __future__ import annotations

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

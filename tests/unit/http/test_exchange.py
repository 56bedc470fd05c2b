"""Answers that come in pieces, as those of another machine do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from mlx_router.http.exchange import AnswerTooLarge, read_whole
from mlx_router.supervisor.probe import Prober

BODY = b'{"ready": true, "parts": {"engine": {"ready": true}}}'


def with_server(ask: Callable[[aiohttp.ClientSession, str], Awaitable[None]], *, length: bool = True) -> None:
    """Run `ask` against a server whose answer's second half leaves when the first one has been taken."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"content-length: %d" % len(BODY) if length else b"connection: close"
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + BODY[:9])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(BODY[9:])
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, aiohttp.ClientSession() as session:
            await ask(session, url)

    asyncio.run(main())


@pytest.mark.parametrize("length", [True, False])
def test_a_body_is_read_to_its_end(length: bool) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url) as response:
            assert await read_whole(response, len(BODY)) == BODY

    with_server(ask, length=length)


@pytest.mark.parametrize("length", [True, False])
def test_a_body_over_the_limit_is_not_cut_in_silence(length: bool) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url) as response:
            with pytest.raises(AnswerTooLarge):
                await read_whole(response, len(BODY) - 1)

    with_server(ask, length=length)


def test_the_supervisor_sees_the_whole_answer() -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        prober = Prober(session, url)
        look = await prober.look()
        assert look.ready
        assert look.details == {"ready": True, "parts": {"engine": {"ready": True}}}
        assert await prober.text("/metrics") == BODY.decode()

    with_server(ask)

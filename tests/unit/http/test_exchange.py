"""Answers that come in pieces, as those of another machine do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from mlx_router.http.exchange import AnswerTooLarge, describe, read_whole
from mlx_router.supervisor.probe import Prober
from tests.gateway_rig import free_port

BODY = b'{"ready": true, "parts": {"engine": {"ready": true}}}'
LENGTH = (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY[:9], BODY[9:])
CLOSE = (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + BODY[:9], BODY[9:])
BETWEEN_PACKETS_S = 0.02  # long enough that they are not read as one


def with_server(ask: Callable[[aiohttp.ClientSession, str], Awaitable[None]], *, pieces: tuple[bytes, ...]) -> None:
    """Run `ask` against a server whose answer leaves in these pieces, a moment apart."""

    answers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(BETWEEN_PACKETS_S)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.append(asyncio.create_task(handle(reader, writer)))

    async def main() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, aiohttp.ClientSession() as session:
            await ask(session, url)
        await asyncio.gather(*answers, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("pieces", [LENGTH, CLOSE], ids=["length", "close"])
def test_a_body_is_read_to_its_end(pieces: tuple[bytes, ...]) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url) as response:
            assert await read_whole(response, len(BODY)) == BODY

    with_server(ask, pieces=pieces)


@pytest.mark.parametrize("pieces", [LENGTH, CLOSE], ids=["length", "close"])
def test_a_body_over_the_limit_is_not_cut_in_silence(pieces: tuple[bytes, ...]) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url) as response:
            with pytest.raises(AnswerTooLarge):
                await read_whole(response, len(BODY) - 1)

    with_server(ask, pieces=pieces)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the connection broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "the answer broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n" + b"x" * 9, "the answer is too large"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", "it does not speak JSON"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff", "it does not speak JSON"),
    ],
)
def test_failures_in_words(answer: bytes, words: str) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises((aiohttp.ClientError, OSError, ValueError)) as caught:
            async with session.get(url) as response:
                json.loads(await read_whole(response, 8))
        assert describe(caught.value) == words

    with_server(ask, pieces=(answer,))


def test_a_server_that_is_not_there() -> None:
    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            look = await Prober(session, f"http://127.0.0.1:{free_port()}").look()
            assert (look.listens, look.reason) == (False, "connection refused")

    asyncio.run(ask())


def test_the_supervisor_sees_the_whole_answer() -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        prober = Prober(session, url)
        look = await prober.look()
        assert look.ready
        assert look.details == {"ready": True, "parts": {"engine": {"ready": True}}}
        assert await prober.text("/metrics") == BODY.decode()

    with_server(ask, pieces=LENGTH)

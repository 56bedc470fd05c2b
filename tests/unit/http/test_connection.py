"""Requests that offer to change the protocol are requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from mlx_router.gateway.wire import GuardedProtocol, WireLimits
from mlx_router.http.connection import Connection

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
GUARDED = type(
    "Guarded", (GuardedProtocol,), {"limits": WireLimits(header_bytes=4096, connections=9, client_timeout_s=5.0)}
)


async def echo(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Method, path and body, after the body was read."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    answer = f"{scope['method']} {scope['path']} ".encode() + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


class Client:
    """Packets out, answers in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, packet: bytes) -> None:
        self.writer.write(packet)
        await self.writer.drain()

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        return await self.reader.readexactly(int(length.partition(b":")[2]))


@asynccontextmanager
async def connected(protocol: type[asyncio.Protocol]) -> AsyncIterator[Client]:
    config = uvicorn.Config(echo, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg]
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield Client(reader, writer)
        writer.close()
        await writer.wait_closed()
        await asyncio.gather(*state.tasks)
    finally:
        server.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await main

    asyncio.run(bounded())


@pytest.mark.parametrize("protocol", [Connection, GUARDED], ids=["specialist", "gateway"])
@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("packets", ["one", "two"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_the_body_is_read_and_the_connection_goes_on(
    protocol: type[asyncio.Protocol], offer: bytes, packets: str, framing: str
) -> None:
    size, body = (
        (b"Content-Length: 7\r\n", b"{'a':1}")
        if framing == "length"
        else (b"Transfer-Encoding: chunked\r\n", b"2\r\n{'\r\n5\r\na':1}\r\n0\r\n\r\n")
    )
    head = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: h\r\n" + offer + size + b"\r\n"

    async def main() -> None:
        async with connected(protocol) as client:
            for packet in [head + body] if packets == "one" else [head, body]:
                await client.send(packet)
            assert await client.answer() == b"POST /v1/x {'a':1}"
            await client.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
            assert await client.answer() == b"GET /next "

    run(main())


def test_an_offer_in_a_pipeline() -> None:
    async def main() -> None:
        async with connected(GUARDED) as client:
            offered = b"POST /%d HTTP/1.1\r\nHost: h\r\n" + H2C + b"Content-Length: 2\r\n\r\nab"
            await client.send(offered % 1 + b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n" + offered % 3)
            assert [await client.answer() for _ in range(3)] == [b"POST /1 ab", b"GET /2 ", b"POST /3 ab"]

    run(main())

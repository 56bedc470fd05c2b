"""An answer's head goes out with the beginning of its body."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn

from mlx_router.http.connection import Connection
from mlx_router.http.head import COPIED_BYTES

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and then whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []

    def write(self, data: Any) -> None:
        if data:
            self.packets.append(bytes(data))

    def close(self) -> None:
        self.packets.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.packets

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def packets(request: bytes, *messages: dict[str, Any] | Exception) -> list[bytes]:
    """What the server writes for a request whose answer is these messages, each after a turn of the loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await receive()
        for message in messages:
            if isinstance(message, Exception):
                raise message
            await send(message)
            await asyncio.sleep(0)

    async def main() -> list[bytes]:
        config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
        config.load()
        state, wire = uvicorn.server.ServerState(), Wire()
        connection = Connection(config, state, {})
        connection.connection_made(wire)
        connection.data_received(request)
        while state.tasks:
            await asyncio.gather(*state.tasks)
        written = wire.packets.copy()
        connection.connection_lost(None)
        return written

    return asyncio.run(main())


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_one_packet_for_a_whole_answer() -> None:
    (packet,) = packets(b"GET / HTTP/1.1\r\n\r\n", START, body(b"body"))
    assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
    assert packet.endswith(b"\r\n\r\nbody")


def test_a_large_body_is_not_copied() -> None:
    data = b"x" * (COPIED_BYTES + 1)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}
    head, rest = packets(b"GET / HTTP/1.1\r\n\r\n", start, body(data))
    assert head.endswith(b"\r\n\r\n")
    assert rest == data


def test_a_stream_begins_with_its_first_piece() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    first, second, last = packets(
        b"GET / HTTP/1.1\r\n\r\n", start, body(b"ab", more=True), body(b"cde", more=True), body(b"")
    )
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\n2\r\nab\r\n")
    assert (second, last) == (b"3\r\ncde\r\n", b"0\r\n\r\n")


@pytest.mark.parametrize("piece", [body(b"", more=True), body(b"")], ids=["to come", "none"])
def test_an_empty_first_piece_is_one_too(piece: dict[str, Any]) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    assert packets(b"GET / HTTP/1.1\r\n\r\n", start, piece)[0].endswith(b"content-length: 0\r\n\r\n")


def test_a_head_whose_body_fails_is_sent() -> None:
    head, end = packets(b"GET / HTTP/1.1\r\n\r\n", START, OSError())
    assert head.endswith(b"content-length: 4\r\n\r\n")
    assert end == b"closed"


def test_head_has_no_body_to_wait_for() -> None:
    (packet,) = packets(b"HEAD / HTTP/1.1\r\n\r\n", START, body(b"body"))
    assert packet.endswith(b"content-length: 4\r\n\r\n")


def test_continue_does_not_wait() -> None:
    request = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi"
    sent = packets(request, START, body(b"body"))
    assert sent[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b"".join(sent[1:]).endswith(b"\r\n\r\nbody")


def test_every_answer_of_a_connection_has_its_own() -> None:
    sent = packets(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n", START, body(b"body"))
    assert [packet[:15] for packet in sent] == [b"HTTP/1.1 200 OK"] * 2

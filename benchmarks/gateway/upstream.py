"""The do-nothing upstream: every POST has the same answer, every GET is ready.

python -m benchmarks.gateway.upstream PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

CHUNKS = 64

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "base",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
_CHUNK = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"base","choices":[{"index":0,'
    b'"delta":{"content":"token "},"finish_reason":null}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_READY = json.dumps({"ready": True, "parts": {}, "queue": {"waiting": 0, "running": 0, "limit": 10**6}}).encode()


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Answers every POST with the same words and every GET with ready."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self._transport.write(_plain(_READY if b" /ready" in head else b'{"object":"list","data":[]}'))
        elif b'"stream":true' in body.replace(b" ", b""):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for _ in range(CHUNKS):
                self._transport.write(_framed(_CHUNK))
            self._transport.write(_framed(_DONE) + b"0\r\n\r\n")
        else:
            self._transport.write(_plain(_ANSWER))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))

"""The load generator: plain asyncio protocols that send requests one after the other and note how long each took."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Client(asyncio.Protocol):
    """Sends the same request again and again on one connection, and notes how long each took."""

    def __init__(self, requests: Iterator[bytes], until: Callable[[int], bool]) -> None:
        self._requests = requests
        self._until = until
        self.latencies: list[float] = []
        self.errors = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def _send(self) -> None:
        self._buffer = bytearray()
        self._started = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = bytes(head).lower()
        at = lowered.find(b"content-length:")
        if at >= 0:
            if len(body) < int(lowered[at + 15 :].split(b"\r\n", 1)[0]):
                return
        elif not body.endswith(b"0\r\n\r\n"):
            return
        self.latencies.append(time.perf_counter() - self._started)
        self.errors += not head.startswith(b"HTTP/1.1 200")
        if self._until(len(self.latencies)):
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request(port: int, model: str, prompt: str, stream: bool = False, key: str = "") -> bytes:
    """One chat request as bytes."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    if stream:
        body["stream"] = True
    data = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *([f"authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def repeat(data: bytes) -> Iterator[bytes]:
    """The same bytes for ever."""
    while True:
        yield data


async def drive(port: int, connections: int, requests: Iterator[bytes], until: Callable[[int], bool]) -> dict[str, Any]:
    """Run clients side by side; requests a second and latencies in ms."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(requests, until), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - started
    latencies = sorted(value * 1e3 for client in clients for value in client.latencies)
    errors = sum(client.errors for client in clients)
    if errors or not latencies:
        raise SystemExit(f"{errors} of {len(latencies)} answers on port {port} were errors")
    return {"n": len(latencies), "per_s": round(len(latencies) / elapsed, 1), **quantiles(latencies)}


def quantiles(ordered: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 of sorted values."""
    return {f"p{q}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 4) for q in (50, 95, 99)}

"""What the gateway costs: latency and throughput straight to a do-nothing upstream, through the gateway, and
through LiteLLM's proxy where it is installed, in one run. Ends in one line of JSON.

    python benchmarks/gateway.py [--seconds 5] [--routed] [--load 60] [--litellm PATH]

The upstream and the load generator are plain asyncio protocols in this file; they, the gateway and the generator
share the machine's cores, as in the published figures of the peers. `--routed` also measures prompts that the
router has not seen, by length; it needs a trained version. `--load` holds 200 connections of mixed traffic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CHUNKS = 64
LENGTHS = (8, 32, 128, 512)  # words of the prompts that are routed
GOALS = {"overhead_p50_ms": 0.6, "overhead_p99_ms": 2.0, "requests_per_s": 3000.0, "streams_per_s": 1500.0}

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


async def measure(port: int, model: str, seconds: float, key: str = "") -> dict[str, Any]:
    """One connection, 16 connections, 8 connections of streams."""
    plain = request(port, model, "Comment router une paire différentielle USB dans KiCad ?", key=key)
    stream = request(port, model, "Comment router une paire différentielle USB dans KiCad ?", True, key)
    await drive(port, 4, repeat(plain), lambda count: count < 50)  # warm-up
    await drive(port, 4, repeat(stream), lambda count: count < 10)

    def until() -> Callable[[int], bool]:
        end = time.perf_counter() + seconds
        return lambda count: time.perf_counter() < end

    return {
        "one": await drive(port, 1, repeat(plain), until()),
        "sixteen": await drive(port, 16, repeat(plain), until()),
        "streams": await drive(port, 8, repeat(stream), until()),
    }


async def measure_routed(port: int) -> dict[str, Any]:
    """Prompts never seen before, one at a time and 16 at a time, by words."""
    results: dict[str, Any] = {}
    number = 0

    def fresh(words: int) -> Iterator[bytes]:
        nonlocal number
        while True:
            number += 1
            text = " ".join(f"mot{(number * 7919 + place * 104729) % 9973}" for place in range(words - 2))
            yield request(port, "auto", f"KiCad {number} {text}")

    for words in LENGTHS:
        await drive(port, 1, fresh(words), lambda count: count < 5)
        results[str(words)] = {
            "one": await drive(port, 1, fresh(words), lambda count: count < 100),
            "sixteen": await drive(port, 16, fresh(words), lambda count: count < 20),
        }
    return results


async def measure_load(port: int, seconds: float, pid: int) -> dict[str, Any]:
    """200 connections, a quarter of them streaming, and what they do to the memory of process `pid`."""
    plain = request(port, "auto", "Comment router une paire différentielle USB dans KiCad ?")
    stream = request(port, "auto", "Comment router une paire différentielle USB dans KiCad ?", True)
    gateway = psutil.Process(pid)
    end = time.perf_counter() + seconds
    samples: list[int] = []

    async def watch() -> None:
        while time.perf_counter() < end:
            samples.append(gateway.memory_info().rss)
            await asyncio.sleep(seconds / 20)

    def until(_: int) -> bool:
        return time.perf_counter() < end

    plain_row, stream_row, _ = await asyncio.gather(
        drive(port, 150, repeat(plain), until), drive(port, 50, repeat(stream), until), watch()
    )
    settled = max(samples[3:6])  # after every connection has been used
    return {
        "connections": 200,
        "seconds": seconds,
        "errors": 0,  # drive() ends the program on the first
        "plain": plain_row,
        "streams": stream_row,
        "rss_mib": {"start": _mib(samples[0]), "settled": _mib(settled), "end": _mib(gateway.memory_info().rss)},
    }


def _mib(size: int) -> float:
    return round(size / 2**20, 1)


@contextmanager
def process(
    arguments: list[str], url: str, patience_s: float = 60.0, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that answers at `url` before the body runs."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **environment})
        try:
            end = time.monotonic() + patience_s
            while not _answers(url):
                if child.poll() is not None or time.monotonic() > end:
                    output.seek(0)
                    raise SystemExit(f"{arguments[1:4]} did not start:\n{output.read()[-3000:].decode()}")
                time.sleep(0.05)
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_upstream(port: int) -> None:
    """The do-nothing upstream, until it is stopped."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
        await server.serve_forever()

    _fast(main())


def run_gateway(config: str, home: str, routed: bool) -> None:
    """The gateway as it is; without `routed` every prompt is classified by a constant, so the cache is what runs."""
    from mlx_router.config import Config, load_config
    from mlx_router.gateway.routes import AdapterEntry
    from mlx_router.gateway.routing import RouterLike
    from mlx_router.gateway.server import serve
    from mlx_router.gateway.service import Gateway, load_router
    from mlx_router.head.decision import CLASSIFIED, Decision

    class Constant:
        def __init__(self) -> None:
            self.version = "v0000"
            self.notice: str | None = None
            self.labels = ("general",)
            self.meta: dict[str, Any] = {}

        def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]:
            return [Decision(domain="general", score=0.9, reason=CLASSIFIED, router="v0000") for _ in prompts]

        def encode(self, texts: Sequence[str]) -> Any:
            raise NotImplementedError

    def load(config: Config) -> RouterLike:
        return load_router(config) if routed else Constant()

    def catalog(_: object) -> list[AdapterEntry]:
        return []

    settings = load_config(config, home)
    serve(Gateway(settings, load=load, catalog=catalog))


def _fast(main: Any) -> Any:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _config(folder: Path, port: int, upstream: int) -> Path:
    path = folder / "mlx-router.toml"
    path.write_text(
        f'[gateway]\nport = {port}\n[[specialist]]\nname = "nothing"\nport = {upstream}\n', encoding="utf-8"
    )
    return path


def _litellm(folder: Path, upstream: int) -> Path:
    path = folder / "litellm.yaml"
    path.write_text(
        "model_list:\n  - model_name: base\n    litellm_params:\n      model: openai/base\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n",  # no keys on either side
        encoding="utf-8",
    )
    return path


def _versions(litellm: str | None) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if litellm:  # lives in an environment of its own
        said = subprocess.run([litellm, "--version"], capture_output=True, text=True, timeout=120).stdout.split()
        found["litellm"] = said[-1] if said else "unknown"
    return found


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Run the whole comparison, or one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--routed", action="store_true", help="also prompts that the router has not seen")
    parser.add_argument("--load", type=float, default=0.0, help="seconds of 200 connections; 0: none")
    parser.add_argument("--home", default=None, help="where the router versions are, for --routed")
    parser.add_argument("--litellm", default=shutil.which("litellm"), help="LiteLLM's command, if not on PATH")
    parser.add_argument("--as-upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--as-gateway", nargs=3, metavar=("CONFIG", "HOME", "ROUTED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_upstream:
        run_upstream(options.as_upstream)
        return
    if options.as_gateway:
        run_gateway(options.as_gateway[0], options.as_gateway[1], options.as_gateway[2] == "routed")
        return
    print(json.dumps(compare(options), ensure_ascii=False))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, with goals; tables go to stdout as they come."""
    upstream, port, other = free_port(), free_port(), free_port()
    me = [sys.executable, str(Path(__file__).resolve())]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = _config(folder, port, upstream)
        with process([*me, "--as-upstream", str(upstream)], f"http://127.0.0.1:{upstream}/ready"):
            ready = f"http://127.0.0.1:{port}/ready"
            with process([*me, "--as-gateway", str(config), str(folder / "home"), "cached"], ready) as gateway:
                # Direct before and after, so that a machine that drifts shows.
                before = _fast(measure(upstream, "base", options.seconds))
                results["gateway"] = _fast(measure(port, "auto", options.seconds))
                after = _fast(measure(upstream, "base", options.seconds))
                results["direct"] = before
                results["direct_again"] = after
                if options.load:
                    results["load"] = _fast(measure_load(port, options.load, gateway.pid))
            if options.routed:
                home = options.home or os.environ.get("MLX_ROUTER_HOME") or str(Path.home() / ".mlx-router")
                with process([*me, "--as-gateway", str(config), home, "routed"], ready):
                    results["routed"] = _fast(measure_routed(port))
            if options.litellm:
                arguments = [options.litellm, "--config", str(_litellm(folder, upstream)), "--port", str(other)]
                with process([*arguments, "--host", "127.0.0.1"], f"http://127.0.0.1:{other}/health/liveliness"):
                    results["litellm"] = _fast(measure(other, "base", options.seconds, key="none"))
    for who in ("direct", "gateway", "litellm"):
        for what, row in results.get(who, {}).items():
            print(f"{who:8} {what:8} {row}")
    for words, row in results.get("routed", {}).items():
        print(f"routed   {words:>4} words  one {row['one']}  sixteen {row['sixteen']}")
    if "load" in results:
        print(f"load     {results['load']}")
    direct_p50 = statistics.mean(results[who]["one"]["p50_ms"] for who in ("direct", "direct_again"))
    through = results["gateway"]
    figures = {
        "overhead_p50_ms": round(through["one"]["p50_ms"] - direct_p50, 4),
        "overhead_p99_ms": round(through["one"]["p99_ms"] - direct_p50, 4),
        "requests_per_s": through["sixteen"]["per_s"],
        "streams_per_s": through["streams"]["per_s"],
    }
    if "litellm" in results:
        figures["times_litellm"] = round(through["sixteen"]["per_s"] / results["litellm"]["sixteen"]["per_s"], 1)
    met = {
        name: figures[name] <= goal if name.endswith("_ms") else figures[name] >= goal for name, goal in GOALS.items()
    }
    return {
        "benchmark": "gateway",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
        "versions": _versions(options.litellm),
        "seconds": options.seconds,
        "load_average": round(os.getloadavg()[0], 2),
        "figures": figures,
        "goals": GOALS,
        "met": met,
        "results": results,
    }


if __name__ == "__main__":
    main()

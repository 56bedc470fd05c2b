"""A gateway for page tests: a real HTTP server that speaks the documented JSON and does as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from copy import deepcopy
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.page import samples

WEB = Path(__file__).resolve().parents[2] / "mlx_router" / "gateway" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Stub:
    """State of the server and its thread. Tests write its fields; `reset` makes it new."""

    def __init__(self) -> None:
        self.reset()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub", daemon=True)
        self._thread.start()
        self._runner: web.AppRunner
        self.url = self._run(self._start())

    def reset(self) -> None:
        """As new: everything is well, nothing is scripted."""
        self.status: dict[str, Any] = deepcopy(samples.STATUS)
        self.decisions: list[dict[str, Any]] = deepcopy(samples.DECISIONS)
        self.decision: dict[str, Any] = deepcopy(samples.DECISION)
        self.pieces: list[str] = list(samples.PIECES)
        self.answer_headers: dict[str, str] = dict(samples.ANSWER_HEADERS)
        self.tail: list[bytes] | None = None  # events after the pieces, in place of usage and [DONE]
        self.hold_after: int | None = None  # pieces before the stream waits for `release`
        self.pace_s = 0.0  # between two pieces
        self.errors: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = {}  # path -> answer
        self.raw: dict[str, bytes] = {}  # path -> a body that is no JSON of ours
        self.slow: set[str] = set()  # paths that wait for `release`
        self.token = ""  # wanted for administration
        self.api_key = ""  # wanted for everything
        self.seen: list[dict[str, Any]] = []
        self.cancelled = threading.Event()
        self.released = threading.Event()

    def fail(self, path: str, status: int, code: str, message: str = "as asked", **headers: str) -> None:
        """Answer a path with an error envelope."""
        body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
        pairs = {name.replace("_", "-"): value for name, value in headers.items()}
        self.errors[path] = (status, body, pairs)

    def release(self) -> None:
        """Let a held stream go on."""
        self.released.set()

    def posted(self, path: str) -> list[dict[str, Any]]:
        """The requests that came to a path with a body."""
        return [item for item in self.seen if item["path"] == path and item["body"] is not None]

    def close(self) -> None:
        """End the server and its thread."""
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> str:
        app = web.Application(middlewares=[self._guard])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/route", self._route)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/decisions", self._decisions)
        for name in ("load", "unload", "pin"):
            app.router.add_post(f"/v1/{name}_lora_adapter", getattr(self, f"_{name}"))
        app.router.add_post("/v1/router/activate", self._activate)
        app.router.add_post("/v1/router/rollback", self._rollback)
        app.router.add_get("/{name:[a-z0-9.]*}", self._file)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append({"path": request.path, "headers": headers, "body": body})
        given = headers.get("authorization", "").removeprefix("Bearer ")
        admin = request.path.endswith("_lora_adapter") or request.path.startswith("/v1/router/")
        wanted = self.token if admin else self.api_key
        if request.path.startswith("/v1/") and wanted and given not in (wanted, self.token or wanted):
            self_said = "the admin token is missing or wrong" if admin else "the API key is missing or wrong"
            error = {"message": self_said, "type": "authentication_error", "param": None, "code": "invalid_api_key"}
            return web.json_response({"error": error}, status=401)
        if request.path in self.slow:
            await asyncio.get_running_loop().run_in_executor(None, self.released.wait, 20)
        if request.path in self.errors:
            status, answer, extra = self.errors[request.path]
            return web.json_response(answer, status=status, headers=extra)
        if request.path in self.raw:
            return web.Response(body=self.raw[request.path], content_type="application/json")
        response: web.StreamResponse = await handler(request)
        return response

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = WEB / (request.match_info["name"] or "index.html")
        if not path.is_file():
            raise web.HTTPNotFound
        headers = {
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "cache-control": "max-age=600",
        }
        return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self.status)

    async def _decisions(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.decisions})

    async def _route(self, request: web.Request) -> web.Response:
        return web.json_response(self.decision)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**self.answer_headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for number, piece in enumerate(self.pieces):
                if number == self.hold_after:
                    await asyncio.get_running_loop().run_in_executor(None, self.released.wait, 20)
                await asyncio.sleep(self.pace_s)
                await response.write(_event({"choices": [{"index": 0, "delta": {"content": piece}}]}))
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        usage = {"prompt_tokens": 11, "completion_tokens": len(self.pieces), "total_tokens": 11 + len(self.pieces)}
        end = [
            _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
            _event({"choices": [], "usage": usage}),
            b"data: [DONE]\n\n",
        ]
        for event in self.tail if self.tail is not None else end:
            await response.write(event)
        return response

    def _adapter(self, name: str) -> dict[str, Any]:
        for server in self.status["specialists"]:
            for adapter in server["adapters"]:
                if adapter["id"] == name:
                    found: dict[str, Any] = adapter
                    return found
        fresh = {"id": name, "state": "available", "digest": None, "rank": 8, "slot": 9, "pinned": False}
        made: dict[str, Any] = {**fresh, "requests": 0, "active": 0, "reason": None}
        self.status["specialists"][0]["adapters"].append(made)
        return made

    async def _load(self, request: web.Request) -> web.Response:
        adapter = self._adapter((await request.json())["lora_name"])
        previous = adapter["digest"] if adapter["state"] == "resident" else None
        adapter.update(state="resident", digest="sha256:" + "b" * 64)
        return web.json_response(
            {
                "lora_name": adapter["id"],
                "status": "replaced" if previous else "loaded",
                "digest": adapter["digest"],
                "previous_digest": previous,
                "ms": {"read": 12.0, "check": 1.5, "bank": 17.5, "total": 31.0},
            }
        )

    async def _unload(self, request: web.Request) -> web.Response:
        adapter = self._adapter((await request.json())["lora_name"])
        adapter.update(state="unloaded", digest=None, pinned=False)
        return web.json_response({"lora_name": adapter["id"], "status": "unloaded", "digest": None})

    async def _pin(self, request: web.Request) -> web.Response:
        adapter = self._adapter((await request.json())["lora_name"])
        adapter["pinned"] = (await request.json())["pinned"]
        return web.json_response({"lora_name": adapter["id"], "pinned": adapter["pinned"]})

    async def _activate(self, request: web.Request) -> web.Response:
        return self._serve((await request.json())["version"])

    async def _rollback(self, request: web.Request) -> web.Response:
        versions = self.status["router"]["versions"]
        return self._serve(versions[versions.index(self.status["router"]["version"]) - 1])

    def _serve(self, version: str) -> web.Response:
        router = self.status["router"]
        previous, router["version"], router["current"] = router["version"], version, version
        return web.json_response({"version": version, "previous": previous, "notice": None})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"

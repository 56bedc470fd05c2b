"""A specialist for tests: the real HTTP surface, canned words, and faults on demand. `python -m tests.fake_specialist`.

A request body may carry `x_test`, which the gateway passes through like any field it does not know:
    {"status": 429, "retry_after": "2"}   answer with this status; "code": of the error; "model": only for this one
    {"die_after": 3}                      stream three events, then kill this process's connection
    {"hold": "name"}                      wait for POST /control {"release": "name"} before the first byte
    {"hold_after": 2, "hold": "name"}     the same, after two events
    {"chunks": 64, "pause_s": 0.1}        events of a stream, and how long each is waited for
    {"raw": "base64…", "cut": 7}          stream these bytes, whatever they are
    {"cut": 7}                            write a stream in pieces of seven bytes
    {"size": 1000000}                     characters of content
POST /control also takes {"ready": false}, {"full": true}, {"adapters": {name: state}}, and {"split": true}: every JSON
answer leaves in two packets.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
from typing import Any

from aiohttp import web

BETWEEN_PACKETS_S = 0.02  # long enough that they are not read as one


class FakeSpecialist:
    """State of one fake."""

    def __init__(self, name: str, adapters: dict[str, str]) -> None:
        self.name = name
        self.adapters = adapters
        self.ready = True
        self.full = False
        self.split = False
        self.running = 0
        self.gates: dict[str, asyncio.Event] = {}
        self.seen: list[dict[str, Any]] = []
        self.cancelled = 0

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        test = body.get("x_test") or {}
        self.seen.append(
            {
                "path": request.path,
                "raw": raw.decode(),
                "headers": {k.lower(): v for k, v in request.headers.items()},
            }
        )
        model = body.get("model")
        mine = test.get("only") in (None, self.name) and test.get("model") in (None, model)
        if (status := test.get("status")) and mine:
            headers = {"retry-after": test["retry_after"]} if "retry_after" in test else {}
            return error(status, "as asked", headers, test.get("code"))
        if self.full:
            return error(429, "the queue is full", {"retry-after": "1"})
        if model not in ("base", *self.adapters):
            return error(404, f"the model {model!r} does not exist")
        if self.adapters.get(model) == "quarantined":
            return error(409, f"adapter {model!r} is quarantined")
        headers = {
            "x-adapter": model,
            "x-adapter-digest": "base" if model == "base" else f"sha256:{model}",
            "x-request-id": request.headers.get("x-request-id", "none"),
        }
        self.running += 1
        try:
            if body.get("stream"):
                return await self.stream(request, body, test, headers)
            if "hold" in test and test.get("only") in (None, self.name):
                await self.gate(test["hold"]).wait()
            if "die_after" in test and test.get("only") in (None, self.name):
                assert request.transport is not None
                request.transport.abort()
            text = "x" * test["size"] if "size" in test else f"{self.name} answers with {model}"
            return web.json_response(self.whole(request.path, model, text), headers=headers)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def whole(self, path: str, model: str, text: str) -> dict[str, Any]:
        chat = path.endswith("/chat/completions")
        message: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "id": "cmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", **message}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        }

    async def stream(
        self, request: web.Request, body: dict[str, Any], test: dict[str, Any], headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        if "hold" in test and "hold_after" not in test:
            await self.gate(test["hold"]).wait()
        await response.prepare(request)
        if "raw" in test:
            await self.write(response, base64.b64decode(test["raw"]), test)
            await response.write_eof()
            return response
        mine = test.get("only") in (None, self.name)
        for number in range(test.get("chunks", 4)):
            if mine and test.get("die_after") == number:
                assert request.transport is not None
                if number:
                    await response.write(b'data: {"half an ev')
                request.transport.close()
                return response
            await asyncio.sleep(test.get("pause_s", 0.0))
            if test.get("hold_after") == number:
                await self.gate(test["hold"]).wait()
            delta = {"role": "assistant", "content": f"{number}é "} if number == 0 else {"content": f"{number}é "}
            chunk = {
                "id": "cmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            }
            await self.write(response, f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode(), test)
        last = {
            "id": "cmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
        }
        await self.write(response, f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode(), test)
        await response.write_eof()
        return response

    async def write(self, response: web.StreamResponse, data: bytes, test: dict[str, Any]) -> None:
        step = test.get("cut") or len(data)
        for start in range(0, len(data), step):
            await response.write(data[start : start + step])
            if "cut" in test:
                await asyncio.sleep(0)

    async def control(self, request: web.Request) -> web.Response:
        body = await request.json()
        for name in ("ready", "full", "split"):
            if name in body:
                setattr(self, name, body[name])
        if "adapters" in body:
            self.adapters = body["adapters"]
        if "release" in body:
            self.gate(body["release"]).set()
        if body.get("forget"):
            self.seen.clear()
        return web.json_response({"seen": self.seen, "running": self.running, "cancelled": self.cancelled})

    async def get_ready(self, request: web.Request) -> web.Response:
        queue = {"waiting": 0, "running": self.running, "limit": 256}
        part = {"ready": self.ready, "reason": None if self.ready else "the engine is starting"}
        body = {
            "ready": self.ready,
            "parts": {"engine": part},
            "queue": queue,
            "base": "/secret/fake-base",
            "adapters": [],
        }
        return web.json_response(body, status=200 if self.ready else 503)

    async def get_adapters(self, request: web.Request) -> web.Response:
        data = [
            {"id": n, "state": s, "digest": f"sha256:{n}", "path": "/secret/place"} for n, s in self.adapters.items()
        ]
        base = {"id": "/secret/fake-base", "digest": "sha256:base", "path": "/secret/base"}
        bank = {"slots": 33, "used": len(data) + 1, "bytes": 1, "budget_bytes": 2, "max_rank": 16}
        return web.json_response({"object": "list", "base": base, "bank": bank, "data": data})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["lora_name"]
        if (path := str(body.get("lora_path"))).startswith("/"):
            return error(403, f"{path} lies outside the adapter roots")
        replaced = name in self.adapters
        if replaced and not body.get("load_inplace"):
            return error(409, f"adapter {name!r} is already loaded")
        self.adapters = {**self.adapters, name: "resident"}
        self.seen.append({"path": request.path, "raw": json.dumps(body), "headers": dict(request.headers)})
        return web.json_response({"lora_name": name, "status": "replaced" if replaced else "loaded", "digest": "d"})

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return error(404, f"no adapter {name!r}")
        self.adapters = {key: value for key, value in self.adapters.items() if key != name}
        return web.json_response({"lora_name": name, "status": "unloaded"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})


def error(status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code or f"fake_{status}"}}
    return web.json_response(body, status=status, headers=headers)


def application(fake: FakeSpecialist) -> web.Application:
    @web.middleware
    async def in_two_packets(request: web.Request, handler: Any) -> web.StreamResponse:
        whole = await handler(request)
        if not fake.split or not isinstance(whole, web.Response):
            return whole
        assert isinstance(whole.body, bytes)
        halves = web.StreamResponse(status=whole.status, headers=whole.headers)
        halves.content_length = len(whole.body)
        await halves.prepare(request)
        await halves.write(whole.body[:9])
        await asyncio.sleep(BETWEEN_PACKETS_S)
        await halves.write(whole.body[9:])
        return halves

    app = web.Application(
        client_max_size=2**26, handler_args={"handler_cancellation": True}, middlewares=[in_two_packets]
    )
    app.router.add_post("/v1/chat/completions", fake.complete)
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_post("/v1/load_lora_adapter", fake.load)
    app.router.add_post("/v1/unload_lora_adapter", fake.unload)
    app.router.add_get("/v1/adapters", fake.get_adapters)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_get("/ready", fake.get_ready)
    app.router.add_post("/control", fake.control)
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapters", default="")
    arguments = parser.parse_args()
    fake = FakeSpecialist(arguments.name, {name: "resident" for name in arguments.adapters.split(",") if name})
    with contextlib.suppress(KeyboardInterrupt):
        web.run_app(
            application(fake), host="127.0.0.1", port=arguments.port, print=None, handler_cancellation=True,
            access_log=None, shutdown_timeout=1.0,
        )  # fmt: skip
    os._exit(0)


if __name__ == "__main__":
    main()

"""The gateway and the specialists over HTTP, as any client sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from mlx_router.errors import UpstreamUnavailable

TIMEOUT_S = 120.0
AUTO = "ailiance/auto"


@dataclass(slots=True, kw_only=True)
class Reply:
    """One streamed answer with what its headers say, and its times in seconds from the request."""

    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    first_s: float = 0.0
    end_s: float = 0.0
    ended_at: float = 0.0  # time.perf_counter()
    tokens: int = 0
    finished: bool = False  # [DONE] came

    @property
    def adapter(self) -> str:
        """The adapter that answered, as the gateway says."""
        return self.headers.get("x-router-adapter", "")

    @property
    def digest(self) -> str:
        """Of the weights that answered, as the specialist says."""
        return self.headers.get("x-adapter-digest", "")

    @property
    def tokens_per_s(self) -> float:
        """Over the whole answer, the prompt included: tokens may arrive in bursts."""
        return self.tokens / self.end_s if self.end_s > 0 else 0.0


class Client:
    """Raises UpstreamUnavailable with the server's own words where it does not do what was asked."""

    def __init__(self, session: aiohttp.ClientSession, gateway: str) -> None:
        self._session = session
        self.gateway = gateway

    async def get(self, path: str, url: str | None = None) -> dict[str, Any]:
        """A JSON document of the gateway, or of the server at `url`."""
        async with self._session.get(f"{url or self.gateway}{path}") as answer:
            return await _document(answer)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON answer of the gateway."""
        async with self._session.post(f"{self.gateway}{path}", json=body) as answer:
            return await _document(answer)

    async def route(self, prompt: str) -> dict[str, Any]:
        """The decision on a prompt."""
        return await self.post("/v1/route", {"messages": [{"role": "user", "content": prompt}]})

    async def chat(
        self,
        prompt: str,
        *,
        model: str = AUTO,
        max_tokens: int = 96,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Reply:
        """Ask and stream, greedily."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        began = time.perf_counter()
        async with self._session.post(f"{self.gateway}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                await _document(answer)
            reply = Reply(headers={name.lower(): value for name, value in answer.headers.items()})
            async for line in answer.content:
                if line.startswith(b"data:"):
                    _take(reply, line[5:].strip(), time.perf_counter() - began, on_text)
        reply.ended_at = time.perf_counter()
        reply.end_s = reply.ended_at - began
        return reply

    async def swap(self, name: str, path: str) -> dict[str, Any]:
        """Replace an adapter's weights in place."""
        body = {"lora_name": name, "lora_path": path, "load_inplace": True}
        return await self.post("/v1/load_lora_adapter", body)


def _take(reply: Reply, data: bytes, at_s: float, on_text: Callable[[str], None]) -> None:
    if data == b"[DONE]":
        reply.finished = True
        return
    event = json.loads(data)
    if "error" in event:
        raise UpstreamUnavailable(f"the stream broke: {event['error'].get('message')}")
    reply.tokens = (event.get("usage") or {}).get("completion_tokens", reply.tokens)
    for choice in event.get("choices", ()):
        text = choice["delta"].get("content") or ""
        if text:
            reply.first_s = reply.first_s or at_s
            reply.text += text
            on_text(text)


async def _document(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        found = json.loads(await answer.read())
    except ValueError:
        found = {}
    if answer.status != 200 or not isinstance(found, dict):
        error = found.get("error") if isinstance(found, dict) else None
        message = error.get("message") if isinstance(error, dict) else ""
        raise UpstreamUnavailable(f"{answer.url.path} answers {answer.status}: {message}")
    return found

"""Asking a child over HTTP: can it serve, is it alive, what does it count. Nothing here raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from mlx_router.http.exchange import describe, read_whole

TIMEOUT_S = 5.0
_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)
_LIMIT_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a child saw."""

    listens: bool  # something answered on its port
    ready: bool = False
    healthy: bool = False  # alive, even where not ready
    dead: bool = False  # says itself that it will not recover
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)  # body of /ready

    @property
    def waits(self) -> frozenset[str]:
        """Names of the parts that are not ready."""
        parts = self.details.get("parts")
        known = parts.items() if isinstance(parts, dict) else ()
        return frozenset(name for name, part in known if isinstance(part, dict) and not part.get("ready"))


class Prober:
    """Looks at one child. `token` is sent along, for servers that want one."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str = "") -> None:
        self._session = session
        self._url = url
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    async def look(self) -> Look:
        """GET /ready, and GET /health where that says no."""
        status, body = await self._get("/ready")
        if status == 200:
            return Look(True, ready=True, healthy=True, details=body)
        if status == 0:
            return Look(False, reason=body.get("error", "no answer"))
        reason = _reasons(body) or f"/ready answers {status}"
        status, health = await self._get("/health")
        if status == 200:
            return Look(True, healthy=True, reason=reason, details=body)
        word = str(health.get("status", f"/health answers {status}" if status else "no answer"))
        return Look(True, dead=word == "dead", reason=str(health.get("reason") or word), details=body)

    async def text(self, path: str) -> str | None:
        """A page as text; None where it cannot be had."""
        try:
            async with self._session.get(self._url + path, headers=self._headers, timeout=_timeout()) as answer:
                data = await read_whole(answer, _LIMIT_BYTES)
                return data.decode("utf-8", "replace") if answer.status == 200 else None
        except _FAILURES:
            return None

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer; (0, {"error": …}) where there is none."""
        return await self._ask("POST", path, body, timeout_s=60.0)

    async def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        return await self._ask("GET", path, None, timeout_s=TIMEOUT_S)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with self._session.request(
                method, self._url + path, json=body, headers=self._headers, timeout=_timeout(timeout_s)
            ) as answer:
                raw = await read_whole(answer, _LIMIT_BYTES)
                status = answer.status
        except _FAILURES as error:
            return 0, {"error": describe(error)}
        try:
            found = json.loads(raw)
        except ValueError:
            found = {}
        return status, found if isinstance(found, dict) else {}


def _timeout(total_s: float = TIMEOUT_S) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s)


def _reasons(body: Mapping[str, Any]) -> str:
    """Why a server is not ready, from the parts of its /ready."""
    parts = body.get("parts")
    if not isinstance(parts, dict):
        return ""
    reasons = [
        f"{name}: {part.get('reason') or 'not ready'}"
        for name, part in parts.items()
        if isinstance(part, dict) and not part.get("ready", True)
    ]
    return "; ".join(reasons)

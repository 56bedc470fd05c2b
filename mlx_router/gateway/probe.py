"""Looking at the health of every endpoint in the background.

A specialist says /ready and what adapters it holds; any other server is asked for its models. A failed request
wakes the probe of its endpoint at once, so that a restarted server is back within one short interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import aiohttp

from mlx_router.gateway.upstreams import Endpoint, Fleet
from mlx_router.http.exchange import describe, read_whole

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
ANSWER_BYTES = 2**22  # of a listing at most
DOWN_INTERVAL_S = 0.5  # between two looks at an endpoint that is down, at most


class Prober:
    """One task an endpoint; `watch` follows a change of the fleet."""

    def __init__(self, session: aiohttp.ClientSession, *, interval_s: float, credential: str = "") -> None:
        self._session = session
        self._interval_s = interval_s
        self.credential = credential  # for our specialists
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._checks: dict[str, asyncio.Task[bool]] = {}

    def watch(self, fleet: Fleet) -> None:
        """Probe the endpoints of this fleet and no others."""
        wanted = {endpoint.key: endpoint for endpoint in fleet}
        for key in [key for key in self._tasks if key not in wanted]:
            self._tasks.pop(key).cancel()
            del self._wake[key]
        for key, endpoint in wanted.items():
            if key not in self._tasks:
                self._wake[key] = asyncio.Event()
                self._tasks[key] = asyncio.create_task(self._run(endpoint), name=f"probe {key}")

    def wake(self, endpoint: Endpoint) -> None:
        """Look at an endpoint now."""
        if (event := self._wake.get(endpoint.key)) is not None:
            event.set()

    async def check(self, endpoint: Endpoint) -> bool:
        """Look once and say whether the endpoint can answer; concurrent callers share one look."""
        task = self._checks.get(endpoint.key)
        if task is None:
            task = self._checks[endpoint.key] = asyncio.create_task(self._check(endpoint))
            task.add_done_callback(lambda _: self._checks.pop(endpoint.key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop looking."""
        tasks = [*self._tasks.values(), *self._checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, endpoint: Endpoint) -> None:
        while True:
            await self.check(endpoint)
            event = self._wake[endpoint.key]
            pause = self._interval_s if endpoint.state == "up" else min(self._interval_s, DOWN_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await event.wait()
            event.clear()

    async def _check(self, endpoint: Endpoint) -> bool:
        before = endpoint.state, endpoint.reason
        try:
            if endpoint.kind == "specialist":
                await self._check_specialist(endpoint)
            else:
                await self._check_upstream(endpoint)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            endpoint.state, endpoint.reason = "down", describe(error)
        endpoint.checked_at = time.time()
        if (endpoint.state, endpoint.reason) != before:
            log.info("event=upstream pool=%s state=%s reason=%r", endpoint.pool, endpoint.state, endpoint.reason)
        return endpoint.state == "up"

    async def _check_specialist(self, endpoint: Endpoint) -> None:
        in_flight = endpoint.in_flight
        _, ready = await self._get(endpoint, "/ready", {200, 503})
        queue = ready.get("queue")
        if isinstance(queue, dict):
            endpoint.waiting, endpoint.running, endpoint.queue_limit = (
                _count(queue.get(name)) for name in ("waiting", "running", "limit")
            )
            endpoint.elsewhere = max(0, endpoint.waiting + endpoint.running - in_flight)
            endpoint.full_until = 0.0
            if endpoint.queue_limit and endpoint.waiting >= endpoint.queue_limit:
                endpoint.overloaded(2 * self._interval_s)
        if isinstance(ready.get("base"), str):
            endpoint.base_id = ready["base"]
        if ready.get("ready") is not True:
            endpoint.state, endpoint.reason = "down", _not_ready(ready)
            return
        status, listing = await self._get(endpoint, "/v1/adapters", {200, 401, 403, 404})
        if status == 200 and isinstance(listing.get("data"), list):
            endpoint.adapters = {
                item["id"]: str(item.get("state", ""))
                for item in listing["data"]
                if isinstance(item, dict) and isinstance(item.get("id"), str)
            }
            endpoint.adapters_known = True
            endpoint.details = listing
        endpoint.state, endpoint.reason = "up", ""

    async def _check_upstream(self, endpoint: Endpoint) -> None:
        headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        async with self._session.get(
            f"{endpoint.url}/v1/models", headers=headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            if response.status in (401, 403):
                endpoint.state, endpoint.reason = "down", "it refuses our key"
            elif response.status >= 500:
                endpoint.state, endpoint.reason = "down", f"it answers {response.status}"
            else:
                endpoint.state, endpoint.reason, endpoint.full_until = "up", "", 0.0

    async def _get(self, endpoint: Endpoint, path: str, statuses: set[int]) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {self.credential}"} if self.credential else {}
        async with self._session.get(
            endpoint.url + path, headers=headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            if response.status not in statuses:
                raise ValueError(f"it answers {response.status}")
            raw = await read_whole(response, ANSWER_BYTES)
            body = json.loads(raw) if raw else {}
            return response.status, body if isinstance(body, dict) else {}


def _not_ready(ready: dict[str, Any]) -> str:
    parts = ready.get("parts")
    if isinstance(parts, dict):
        for name, part in parts.items():
            if isinstance(part, dict) and not part.get("ready"):
                return f"{name}: {str(part.get('reason') or 'not ready')[:200]}"
    return "not ready"


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0

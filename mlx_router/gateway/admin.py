"""Changing what serves: adapters of a specialist, the active router version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

from mlx_router.artifacts.store import RouterStore
from mlx_router.errors import (
    AdapterNotFound,
    ArtifactError,
    InvalidRequest,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mlx_router.gateway.probe import ANSWER_BYTES
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.status import redact, without_places
from mlx_router.gateway.upstreams import Endpoint
from mlx_router.http.exchange import describe, read_whole

ACTIONS = ("load_lora_adapter", "unload_lora_adapter", "pin_lora_adapter")
TIMEOUT_S = 120.0


async def adapter_action(gateway: Gateway, action: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send an admin call on to every server of the adapter's specialist; status and body of the answer.

    `specialist` in the body names it where neither configuration nor manifest do. The first server's answer is
    returned, or the first failure. The gateway knows the new state before it answers.
    """
    name = body.get("lora_name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest("lora_name must be a string", param="lora_name")
    endpoints = _servers(gateway, name, body.get("specialist"))
    payload = {key: value for key, value in body.items() if key != "specialist"}
    results = await asyncio.gather(*(_post(gateway, endpoint, action, payload) for endpoint in endpoints))
    await asyncio.gather(*(gateway.prober.check(endpoint) for endpoint in endpoints))
    status, answer = next((result for result in results if result[0] >= 400), results[0])
    gateway.metrics.admin[(action, str(status))] += 1
    return status, without_places(gateway, answer)


def _servers(gateway: Gateway, name: str, specialist: object) -> list[Endpoint]:
    """The endpoints that hold, or are to hold, an adapter."""
    setup = gateway.setup
    pools = setup.routes.bases
    if specialist is not None:
        if specialist not in pools:
            raise InvalidRequest(f"there is no specialist {specialist!r}", param="specialist")
        pools = (str(specialist),)
    elif name in setup.routes.hosts:
        pools = setup.routes.hosts[name]
    else:
        holding = tuple(dict.fromkeys(item.pool for item in setup.fleet if name in item.adapters))
        entry = setup.routes.adapters.get(name)
        if holding:
            pools = holding
        elif entry is not None and entry.specialist in pools:
            pools = (entry.specialist,)
        elif len(pools) != 1:
            raise AdapterNotFound(
                f"no specialist is known for adapter {name!r}; name one in `specialist`", param="lora_name"
            )
    endpoints = [endpoint for pool in pools for endpoint in setup.fleet.pool(pool)]
    if not endpoints:
        raise UpstreamUnavailable("no specialist is configured")
    return endpoints


async def _post(
    gateway: Gateway, endpoint: Endpoint, action: str, payload: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    token = gateway.setup.config.security.admin_token
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=gateway.relay.timeouts.connect_s)
    try:
        async with gateway.session.post(
            f"{endpoint.url}/v1/{action}", data=json.dumps(payload), headers=headers, timeout=timeout
        ) as response:
            answer = json.loads(await read_whole(response, ANSWER_BYTES))
            return response.status, answer if isinstance(answer, dict) else {}
    except TimeoutError as error:
        raise UpstreamTimeout(f"{endpoint.pool} did not answer within {TIMEOUT_S:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UpstreamUnavailable(f"{endpoint.pool}: {describe(error)}") from error


async def activate_version(gateway: Gateway, version: str) -> dict[str, Any]:
    """Verify and activate a router version, and serve it before answering."""
    store = RouterStore(gateway.setup.config.home)

    def activate() -> str:
        store.activate(version)
        return version

    return await _switch(gateway, activate)


async def rollback_version(gateway: Gateway) -> dict[str, Any]:
    """Go back to the version that was active before."""
    return await _switch(gateway, RouterStore(gateway.setup.config.home).rollback)


async def _switch(gateway: Gateway, change: Callable[[], str]) -> dict[str, Any]:
    previous = gateway.router.status.version
    try:
        wanted = await asyncio.get_running_loop().run_in_executor(None, change)
    except ArtifactError as error:
        raise type(error)(redact(gateway, error.message)) from None
    status = await gateway.router.reload()
    if status.version != wanted:
        raise ArtifactError(redact(gateway, status.notice or status.error or f"{wanted} cannot be loaded"))
    return {"version": status.version, "previous": previous or None, "notice": redact(gateway, status.notice) or None}

"""Running specialists, as commands see them: where they are, and their admin endpoints."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import AdapterError, UpstreamTimeout, UpstreamUnavailable
from mlx_router.lora.registry import AdapterRecord

LOOK_TIMEOUT_S = 2.0
CHANGE_TIMEOUT_S = 300.0  # a first load may read gigabytes
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # specialists are never behind a proxy


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One server that may hold an adapter."""

    specialist: str
    url: str  # without a path
    token: str = ""

    def adapters(self) -> dict[str, Any] | None:
        """GET /v1/adapters; None where nothing answers."""
        try:
            return self._ask("GET", "/v1/adapters", None, LOOK_TIMEOUT_S)
        except UpstreamUnavailable:
            return None

    def post(self, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /v1/<verb>_lora_adapter; the reply, and who gave it.

        Raises UpstreamUnavailable where nothing answers, AdapterError for a no.
        """
        reply = self._ask("POST", f"/v1/{verb}_lora_adapter", body, CHANGE_TIMEOUT_S)
        return {"specialist": self.specialist, "url": self.url, **reply}

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with _OPENER.open(request, timeout=timeout_s) as response:
                return _object(response.read())
        except urllib.error.HTTPError as error:
            with error:
                message = _object(error.read()).get("error", {})
            text = message.get("message") if isinstance(message, dict) else None
            raise AdapterError(f"{self.specialist} ({self.url}): {text or f'HTTP {error.code}'}") from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self.specialist} ({self.url}) did not answer within {timeout_s:.0f} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise UpstreamTimeout(f"{self.specialist} ({self.url}) did not answer in time") from error
            raise UpstreamUnavailable(f"{self.specialist} ({self.url}) does not run: {error.reason}") from error
        except OSError as error:
            raise UpstreamUnavailable(f"{self.specialist} ({self.url}) went away: {error}") from error


def places(config: Config, adapter: AdapterRecord | None = None, at: str = "") -> list[Place]:
    """Every server that may hold an adapter; without one, every server.

    `at`: a URL that is used instead. The ports of a running `serve` are those that it says it has.
    """
    token = config.security.admin_token
    if at:
        return [Place(specialist="server", url=at.rstrip("/").removesuffix("/v1"), token=token)]
    running = _running(config)
    found = []
    for item in config.specialists:
        if adapter is not None and not _holds(item, adapter.name, adapter.specialist):
            continue
        urls = [running.get(item.name) or f"http://{_host(item.host)}:{item.port}"]
        urls += [url.rstrip("/").removesuffix("/v1") for url in item.replicas]
        found += [Place(specialist=item.name, url=url, token=token) for url in urls]
    return found


def up(candidates: Sequence[Place]) -> list[Place]:
    """Those that answer."""
    return [place for place in candidates if place.adapters() is not None]


def must_be_up(candidates: Sequence[Place], name: str) -> list[Place]:
    """Those that answer. Raises AdapterError where none of an adapter's servers does."""
    alive = up(candidates)
    if not alive:
        tried = ", ".join(f"{place.specialist} at {place.url}" for place in candidates)
        raise AdapterError(f"no server for {name} runs (tried {tried or 'none: no specialist is configured'})")
    return alive


def unload_everywhere(candidates: Sequence[Place], name: str) -> list[str]:
    """Unload an adapter where it is known; the specialists that had it."""
    done = []
    for place in candidates:
        known = {entry.get("id") for entry in (place.adapters() or {}).get("data", [])}
        if name in known:
            try:
                place.post("unload", {"lora_name": name})
            except AdapterError:  # known, but not loaded
                continue
            done.append(place.specialist)
    return done


def base_of(config: Config, name: str, specialist: str) -> str:
    """The base that an adapter runs on: of the specialist that holds it, else the embedded one."""
    for item in config.specialists:
        if _holds(item, name, specialist):
            return item.base
    return "demo"


def _holds(item: SpecialistConfig, name: str, specialist: str) -> bool:
    if item.adapters:
        return name in (*item.adapters, *item.pinned)
    return item.name == specialist or name in item.pinned


def _running(config: Config) -> dict[str, str]:
    """Specialist -> URL, from the record of a `serve` that runs on this home."""
    try:
        from mlx_router.cli.status import running_record

        record = running_record(config.home) or {}
    except ImportError:  # without the `serve` extra nothing of ours runs
        return {}
    children = record.get("children", [])
    return {child["name"]: child["url"] for child in children if child.get("kind") == "specialist" and child.get("url")}


def _host(host: str) -> str:
    """What to connect to for an address that a server listens on."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host in ("::", "[::]"):
        return "[::1]"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

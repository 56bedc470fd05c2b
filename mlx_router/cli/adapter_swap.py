"""`adapter swap`: new weights for a name, on disk and in every server that holds it, or nothing at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_router.cli.interrupt import Interrupt
from mlx_router.cli.specialists import Place
from mlx_router.errors import AdapterError, AdapterQuarantined, RouterError
from mlx_router.lora.registry import AdapterRecord, Registry


def swap(
    registry: Registry, name: str, source: Path, servers: Sequence[Place], *, force: bool = False
) -> dict[str, Any]:
    """Install the weights in `source`, load them in place everywhere, and only then make them current.

    Requests that run end on the old version. When one server refuses, those before it get the old version back,
    CURRENT stays, and the error is raised; an interrupt is such an error. Returns digests and milliseconds.
    """
    began = time.perf_counter()
    before = registry.find(name)
    done = registry.install(name, source, activate=False, verify=False)
    version = done.path.name
    try:
        _refuse_quarantined(registry, name, version, force)
        with Interrupt() as interrupt:
            replies = _everywhere(registry, before, done.path, servers, interrupt)
    except _NotUndone as error:  # a server may still read these files
        raise error.cause from error.cause.__cause__
    except (RouterError, OSError, KeyboardInterrupt):
        if done.new:
            registry.remove(name, version)
        raise
    return {
        "adapter": name,
        "digest": done.digest,
        "previous_digest": before.sha256,
        "path": str(done.path),
        "servers": replies,
        "ms": round((time.perf_counter() - began) * 1000, 1),
    }


class _NotUndone(Exception):
    """A swap failed, and so did putting the old version back somewhere."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


def _refuse_quarantined(registry: Registry, name: str, version: str, force: bool) -> None:
    reason = registry.quarantined(name).get(version)
    if reason and not force:
        raise AdapterQuarantined(f"{name} {version} is quarantined: {reason}; --force swaps it in all the same")


def _everywhere(
    registry: Registry, before: AdapterRecord, path: Path, servers: Sequence[Place], interrupt: Interrupt
) -> list[dict[str, Any]]:
    """Load the version in `path` in every server, then make it current; on any failure the old one is back."""
    replies: list[dict[str, Any]] = []
    changed: list[Place] = []
    asked: Place | None = None
    try:
        for place in servers:
            body = {"lora_name": before.name, "lora_path": str(path), "load_inplace": True}
            asked = place
            changed.append(place)  # also one that does not answer in time may have changed
            replies.append(place.post("load", body))
            asked = None
            interrupt.check()
        registry.activate(before.name, path.name)
    except (RouterError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, AdapterError) and asked is not None:
            changed.remove(asked)  # it said no: it has changed nothing
        _undo_all(changed, before, error)
        raise
    return replies


def _undo_all(changed: Sequence[Place], before: AdapterRecord, cause: BaseException) -> None:
    try:
        left = [place for place in changed if not _undo(place, before)]
    except KeyboardInterrupt:  # of somebody who does not want to wait
        left = list(changed)
    if left:
        raise _NotUndone(cause) from cause


def _undo(place: Place, before: AdapterRecord) -> bool:
    """Give a server the old version back."""
    with suppress(RouterError):
        if before.path is None:
            place.post("unload", {"lora_name": before.name})
        else:
            body = {"lora_name": before.name, "lora_path": str(before.path), "load_inplace": True}
            place.post("load", body)
        return True
    return False

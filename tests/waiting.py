"""Waiting for what another thread or process does, where nothing says when: look again and again, not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 20.0
PAUSE_S = 0.01


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first value of `condition` that is true."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(PAUSE_S)
    raise TimeoutError(f"not within {patience_s:g} s: {what}")


async def until(condition: Callable[[], Any]) -> None:
    """The same on an event loop, which goes on."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(PAUSE_S)

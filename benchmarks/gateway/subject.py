"""The gateway that is measured: `python -m benchmarks.gateway.subject CONFIG HOME cached|routed`.

The gateway as it is; with `cached` every prompt is classified by a constant, so the cache is what runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlx_router.config import Config, load_config
from mlx_router.gateway.routes import AdapterEntry
from mlx_router.gateway.server import serve
from mlx_router.gateway.service import Gateway, load_router
from mlx_router.head.decision import CLASSIFIED, Decision


class Constant:
    """Every prompt is of the domain `general`."""

    def __init__(self, config: Config) -> None:
        self.version = "v0000"
        self.notice: str | None = None
        self.labels = ("general",)
        self.meta: dict[str, Any] = {}

    def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]:
        return [Decision(domain="general", score=0.9, reason=CLASSIFIED, router="v0000") for _ in prompts]

    def encode(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError


def _no_adapters(_: object) -> list[AdapterEntry]:
    return []


if __name__ == "__main__":
    config, home, routed = sys.argv[1:]
    serve(
        Gateway(load_config(config, home), load=load_router if routed == "routed" else Constant, catalog=_no_adapters)
    )

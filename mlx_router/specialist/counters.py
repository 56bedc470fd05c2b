"""What the engine counts, and the picture of itself that it shows to other threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class Counters:
    """Totals since the start; none of them ever falls."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    step_s: float = 0.0
    decoded_rows: int = 0  # rows that got a token, summed over steps
    recoveries: int = 0  # batches that were made again after a failure
    tokens: dict[str, int] = field(default_factory=dict)  # generated, by adapter

    def generated(self, adapter: str | None) -> None:
        name = adapter or "base"
        self.tokens[name] = self.tokens.get(name, 0) + 1

    def copy(self) -> Counters:
        return replace(self, tokens=dict(self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine at one moment."""

    waiting: int
    running: int
    bank: Mapping[str, Any]
    counters: Counters
    state_bytes: int  # of running rows
    cache_bytes: int
    cache_entries: int
    cache_hits: int
    cache_misses: int
    cache_evictions: int

    def resident(self) -> dict[str, Mapping[str, Any]]:
        """The version that new requests get, by adapter name."""
        return {entry["name"]: entry for entry in self.bank["resident"] if not entry["retired"]}

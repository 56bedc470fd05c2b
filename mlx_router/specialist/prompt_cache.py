"""States of prompts that were computed before, by (adapter digest, tokens); bounded in bytes.

An entry is a model state for exactly its tokens. Attention caches can be cut back to any shorter prefix;
recurrent states cannot, so for those only an entry that is a prefix of the new prompt is of use. At least one
token of a prompt is always left to compute, for its logits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class StateOps(Protocol):
    """What the store must know of model states; mlx-lm's cache objects, seen from outside."""

    def nbytes(self, state: Any) -> int: ...
    def can_trim(self, state: Any) -> bool: ...
    def copy(self, state: Any) -> Any: ...
    def trim(self, state: Any, count: int) -> None:
        """Drop the last `count` tokens, in place."""


@dataclass(slots=True)
class Entry:
    digest: str
    tokens: Tokens
    state: Any
    nbytes: int
    trimmable: bool


class PromptCache:
    """The store. One thread."""

    def __init__(self, ops: StateOps, *, budget_bytes: int, min_tokens: int = 8) -> None:
        self._ops = ops
        self._budget = budget_bytes
        self._min_tokens = min_tokens
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        self._serial = 0
        self.nbytes = 0
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def digests(self) -> set[str]:
        """Digests that have entries."""
        return {entry.digest for entry in self._entries.values()}

    def fetch(self, digest: str, prompt: Sequence[int]) -> tuple[Any, int] | None:
        """A copy of the state of the longest usable prefix, and its length; None where nothing helps."""
        wanted = np.asarray(prompt, dtype=np.int32)
        limit = len(wanted) - 1
        best: tuple[int, int] | None = None  # (usable tokens, key)
        for key, entry in self._entries.items():
            if entry.digest != digest:
                continue
            usable = min(common_prefix(entry.tokens, wanted), limit)
            if usable < len(entry.tokens) and not entry.trimmable:
                continue
            if usable >= self._min_tokens and (best is None or usable > best[0]):
                best = (usable, key)
        if best is None:
            self.misses += 1
            return None
        usable, key = best
        self._entries.move_to_end(key)
        entry = self._entries[key]
        state = self._ops.copy(entry.state)
        if usable < len(entry.tokens):
            self._ops.trim(state, len(entry.tokens) - usable)
        self.hits += 1
        return state, usable

    def wants(self, digest: str, tokens: Sequence[int]) -> bool:
        """Whether `store` would keep a state for these tokens: long enough, and not there already."""
        if self._budget <= 0 or len(tokens) < self._min_tokens:
            return False
        key = np.asarray(tokens, dtype=np.int32)
        return not any(entry.digest == digest and np.array_equal(entry.tokens, key) for entry in self._entries.values())

    def store(self, digest: str, tokens: Sequence[int], state: Any) -> None:
        """Keep `state`, whose arrays are computed. Shorter entries that it can stand for are dropped."""
        nbytes = self._ops.nbytes(state)
        if nbytes > self._budget:
            return
        key = np.asarray(tokens, dtype=np.int32)
        trimmable = self._ops.can_trim(state)
        for serial, entry in list(self._entries.items()):
            same = entry.digest == digest and common_prefix(entry.tokens, key) == len(entry.tokens)
            if same and (trimmable or len(entry.tokens) == len(key)):
                self._drop(serial)
        self._serial += 1
        self._entries[self._serial] = Entry(digest, key, state, nbytes, trimmable)
        self.nbytes += nbytes
        self.shrink(self._budget)

    def shrink(self, budget_bytes: int) -> None:
        """Evict the least recently used entries until at most `budget_bytes` are held."""
        while self._entries and self.nbytes > max(0, budget_bytes):
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def purge(self, digest: str) -> int:
        """Forget everything computed under this digest; the number of entries dropped."""
        keys = [key for key, entry in self._entries.items() if entry.digest == digest]
        for key in keys:
            self._drop(key)
        return len(keys)

    def _drop(self, key: int) -> None:
        self.nbytes -= self._entries.pop(key).nbytes


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length

"""Which adapter each row of a batch uses, carried by the row's prompt cache.

mlx-lm merges, extends, filters, splits and extracts every element of a prompt cache together. One more
element, a BindingCache, therefore stays with its rows through prefill chunks, joins and removals without any
help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_router.compute import mx


@dataclass(frozen=True, slots=True, eq=False)
class AdapterVersion:
    """One adapter as it was loaded; a replaced adapter is another version. Equal only to itself."""

    name: str
    digest: str  # "sha256:<hex>", or "base"
    uid: int  # never used twice in one bank
    slot: int  # in the layers' banks; 0 is the base
    expert_slot: int  # in the experts' pool, 0 when it adapts no expert
    rank: int
    scale: float
    layers: frozenset[str]  # paths of the modules that it adapts


BASE = AdapterVersion("base", "base", 0, 0, 0, 0, 0.0, frozenset())


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the layers need to know about the rows of one call; made once per change of the batch."""

    rows: tuple[AdapterVersion, ...]
    epoch: int  # of the bank when the rows were last checked
    layers: frozenset[str]  # modules that at least one row adapts
    slot: int | None  # the slot of every row when they agree
    lhs: mx.array  # (B,) uint32: 0, 1, 2, ...
    rhs: mx.array  # (B,) uint32: each row's slot
    scale: mx.array  # (B, 1, 1), or () when the adapted rows agree
    experts: mx.array | None  # (B, 1, 1) uint32: each row's slot in the experts' pool, None when all are 0


NOTHING = mx.array(0, dtype=mx.uint32)
IDLE = Plan((BASE,), 0, frozenset(), 0, NOTHING, NOTHING, NOTHING, None)


def make_plan(rows: tuple[AdapterVersion, ...], epoch: int, dtype: mx.Dtype) -> Plan:
    """The plan of a batch; when every row is the base it names no layer, and no layer looks at its arrays."""
    layers: frozenset[str] = frozenset().union(*(row.layers for row in rows))
    if not layers:
        return Plan(rows, epoch, layers, 0, NOTHING, NOTHING, NOTHING, None)
    slots = [row.slot for row in rows]
    slot = slots[0] if all(other == slots[0] for other in slots) else None
    scales = {row.scale for row in rows if row.slot}
    if len(scales) == 1:
        scale = mx.array(scales.pop(), dtype=dtype)  # base rows multiply zeros
    else:
        scale = mx.array([row.scale for row in rows], dtype=dtype)[:, None, None]
    expert_slots = [row.expert_slot for row in rows]
    experts = mx.array(expert_slots, dtype=mx.uint32)[:, None, None] if any(expert_slots) else None
    lhs, rhs = mx.arange(len(rows), dtype=mx.uint32), mx.array(slots, dtype=mx.uint32)
    mx.eval([array for array in (lhs, rhs, scale, experts) if array is not None])
    return Plan(rows, epoch, layers, slot, lhs, rhs, scale, experts)


class BindingCache:
    """The last element of a prompt cache: one AdapterVersion a row. It holds no arrays of its own."""

    def __init__(self, rows: Sequence[AdapterVersion]) -> None:
        self.rows = tuple(rows)
        self.plan: Plan | None = None

    def _set(self, rows: tuple[AdapterVersion, ...]) -> None:
        self.rows, self.plan = rows, None

    def merge(self, caches: Sequence[BindingCache]) -> BindingCache:
        return BindingCache([row for cache in caches for row in cache.rows])

    def extend(self, other: BindingCache) -> None:
        self._set(self.rows + other.rows)

    def filter(self, batch_indices: Any) -> None:
        keep: Any = batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices
        self._set(tuple(self.rows[index] for index in keep))

    def extract(self, idx: int) -> BindingCache:
        return BindingCache([self.rows[idx]])

    def prepare(self, **kwargs: Any) -> None:
        """Padding concerns the tensors of a cache; there are none here."""

    def finalize(self) -> None:
        """See `prepare`."""

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        return n

    def size(self) -> int:
        return 0

    def empty(self) -> bool:
        return False

    @property
    def state(self) -> list[mx.array]:
        return []

    @property
    def nbytes(self) -> int:
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> BindingCache:
        copy = BindingCache(self.rows)  # versions and plans never change, so they are shared
        copy.plan = self.plan
        return copy

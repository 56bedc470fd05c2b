"""Switch (MoE) layers that add each row's own low-rank update to each expert.

A SwitchGLU may sort its tokens by expert, after which rows cannot be told apart. The adopted parent therefore
hands its layers key = expert * (K + 1) + slot instead of the expert: sorting by key sorts by expert, then by
slot, and every layer gets both back. Shapes: E experts, K slots in the experts' pool (1 to K; 0 means none),
R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlx_router.compute import mx, nn
from mlx_router.lora.binding import Plan
from mlx_router.lora.layers import Stage, add_scaled
from mlx_router.lora.memory import SlotMemory, to_host
from mlx_router.lora.tensors import Array


class ExpertPool:
    """What all expert banks of a model share: the number of slots and each slot's scale."""

    def __init__(self, slots: int, dtype: mx.Dtype) -> None:
        self.slots, self.dtype = slots, dtype
        self.scales = mx.zeros((slots + 1,), dtype=dtype)

    def set_scale(self, slot: int, scale: float) -> None:
        self.scales[slot] = scale
        mx.eval(self.scales)


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """A key array taken apart; every array has the key's shape (...), sorted if the key is."""

    experts: mx.array
    index: mx.array  # of the (E, K) pairs of a bank, flat
    active: mx.array | None  # (..., 1, 1) bool; None when every row is
    scale: mx.array  # (..., 1, 1)


class Route:
    """Carries the keys from a switch parent to its layers within one call."""

    def __init__(self, stage: Stage, pool: ExpertPool) -> None:
        self.stage, self.pool = stage, pool
        self.paths: set[str] = set()  # of the layers below this parent that have a bank
        self.plan: Plan | None = None
        self._seen: tuple[mx.array, Keys] | None = None

    def key(self, indices: mx.array, plan: Plan) -> mx.array:
        """indices (B, ..., k) or flattened (B * L, k) of experts -> keys of the same shape."""
        assert plan.experts is not None
        per_row = indices.reshape(len(plan.rows), -1, indices.shape[-1])
        return (per_row * (self.pool.slots + 1) + plan.experts).reshape(indices.shape)

    def keys(self, key: mx.array, plan: Plan) -> Keys:
        """Take a key apart, once for all layers that are given the same array."""
        if self._seen is None or self._seen[0] is not key:
            slots = self.pool.slots
            experts = key // (slots + 1)
            slot = key - experts * (slots + 1)
            everyone = all(row.expert_slot for row in plan.rows)
            keys = Keys(
                experts=experts,
                index=experts * slots + (mx.maximum(slot, 1) - 1),
                active=None if everyone else (slot > 0)[..., None, None],
                scale=self.pool.scales[slot][..., None, None],
            )
            self._seen = (key, keys)
        return self._seen[1]

    def end(self) -> None:
        self.plan = self._seen = None


class ExpertBank:
    """A (E, K, R, in) and B (E, K, out, R) of one switch layer, for slots 1 to K of the pool."""

    def __init__(self, path: str, inputs: int, outputs: int, experts: int, slots: int, rank: int, dtype: mx.Dtype):
        self.path = path
        self.dtype = dtype
        self._a = SlotMemory((experts, slots, rank, inputs), dtype)
        self._b = SlotMemory((experts, slots, outputs, rank), dtype)
        self.a, self.b = self._a.array, self._b.array

    @staticmethod
    def bytes_needed(inputs: int, outputs: int, experts: int, slots: int, rank: int, dtype: mx.Dtype) -> int:
        return experts * slots * rank * (inputs + outputs) * dtype.size

    def write(self, slot: int, a: Array, b: Array) -> None:
        """Put a (E, r, in), b (E, out, r) into a slot (from 1), zeros beyond their rank."""
        rank = a.shape[1]
        self._a.view[:, slot - 1, :rank] = to_host(a, self.dtype)
        self._a.view[:, slot - 1, rank:] = 0
        self._b.view[:, slot - 1, :, :rank] = to_host(b, self.dtype)
        self._b.view[:, slot - 1, :, rank:] = 0

    def clear(self, slot: int) -> None:
        self._a.view[:, slot - 1] = 0
        self._b.view[:, slot - 1] = 0

    def add(self, x: mx.array, y: mx.array, keys: Keys, *, sorted_indices: bool) -> mx.array:
        """y (..., 1, out) plus the update of each key's expert and slot: x (..., 1, in)."""
        if x.dtype != self.a.dtype:
            x = x.astype(self.a.dtype)
        z = mx.gather_mm(x, self.a.swapaxes(-1, -2), rhs_indices=keys.index, sorted_indices=sorted_indices)
        if keys.active is not None:
            z = mx.where(keys.active, z, 0)  # rows without an update went through somebody's A
        z = mx.gather_mm(z, self.b.swapaxes(-1, -2), rhs_indices=keys.index, sorted_indices=sorted_indices)
        return add_scaled(y, z, keys.scale)


@cache
def _parent_class(base: type[nn.Module]) -> type[nn.Module]:
    class Banked(base):  # type: ignore[valid-type,misc]
        lora_route: Route

        def __call__(self, x: mx.array, indices: mx.array) -> Any:
            route = self.lora_route
            plan = route.stage.plan
            if plan.experts is None or route.paths.isdisjoint(plan.layers):
                return base.__call__(self, x, indices)
            route.plan = plan
            try:
                return base.__call__(self, x, route.key(indices, plan))
            finally:
                route.end()

    Banked.__name__ = Banked.__qualname__ = f"Banked{base.__name__}"
    return Banked


@cache
def _switch_class(base: type[nn.Module]) -> type[nn.Module]:
    class Banked(base):  # type: ignore[valid-type,misc]
        lora_route: Route
        lora_bank: ExpertBank | None

        def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> Any:
            plan = self.lora_route.plan
            if plan is None:
                return base.__call__(self, x, indices, sorted_indices=sorted_indices)
            keys = self.lora_route.keys(indices, plan)
            y = base.__call__(self, x, keys.experts, sorted_indices=sorted_indices)
            bank = self.lora_bank
            if bank is None or bank.path not in plan.layers:
                return y
            return bank.add(x, y, keys, sorted_indices=sorted_indices)

    Banked.__name__ = Banked.__qualname__ = f"Banked{base.__name__}"
    return Banked


def adopt_parent(parent: nn.Module, route: Route, layers: Sequence[nn.Module]) -> None:
    """Make a SwitchGLU or SwitchMLP hand keys to `layers`, its switch layers, which learn to read them."""
    cls: Any = type(parent)
    if not hasattr(parent, "lora_route"):
        parent.__class__ = _parent_class(cls)
    parent.lora_route = route
    for layer in layers:
        cls = type(layer)
        if not hasattr(layer, "lora_route"):
            layer.__class__ = _switch_class(cls)
        layer.lora_route, layer.lora_bank = route, None

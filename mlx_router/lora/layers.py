"""Dense layers that add each row's own low-rank update: y + scale * (x A[slot]) B[slot].

A layer is adopted by giving it a subclass of its own class: it stays the same object, with the same
parameters under the same names, and whoever reads its weights keeps doing so. Shapes: N slots, R ranks, slot
0 stays zero.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from mlx_router.compute import mx, nn
from mlx_router.lora.binding import IDLE, Plan
from mlx_router.lora.memory import SlotMemory, to_host
from mlx_router.lora.tensors import Array


class Stage:
    """Where the layers of one model find the plan of the call that is being traced."""

    __slots__ = ("plan", "stream")

    def __init__(self) -> None:
        self.plan = IDLE
        self.stream: mx.Stream | None = None  # that the last call ran on


@partial(mx.compile, shapeless=True)
def add_scaled(y: mx.array, z: mx.array, scale: mx.array) -> mx.array:
    """y + scale * z in one kernel, rounded to y's dtype after scaling as mlx-lm does."""
    return y + (scale * z).astype(y.dtype)


class SlotBank:
    """A (N, in, R) and B (N, R, out) of one layer."""

    def __init__(self, path: str, stage: Stage, inputs: int, outputs: int, slots: int, rank: int, dtype: mx.Dtype):
        self.path, self.stage = path, stage
        self.dtype = dtype
        self._a = SlotMemory((slots, inputs, rank), dtype)
        self._b = SlotMemory((slots, rank, outputs), dtype)
        self.a, self.b = self._a.array, self._b.array

    @staticmethod
    def bytes_needed(inputs: int, outputs: int, slots: int, rank: int, dtype: mx.Dtype) -> int:
        return slots * rank * (inputs + outputs) * dtype.size

    def write(self, slot: int, a: Array, b: Array) -> None:
        """Put a (in, r), b (r, out) into a slot, zeros beyond their rank."""
        rank = a.shape[1]
        self._a.view[slot, :, :rank] = to_host(a, self.dtype)
        self._a.view[slot, :, rank:] = 0
        self._b.view[slot, :rank] = to_host(b, self.dtype)
        self._b.view[slot, rank:] = 0

    def clear(self, slot: int) -> None:
        self._a.view[slot] = 0
        self._b.view[slot] = 0

    def add(self, x: mx.array, y: mx.array, plan: Plan) -> mx.array:
        """y plus every row's update: x (B, ..., in), y (B, ..., out), or both flattened to (B * L, ...)."""
        if x.dtype != self.a.dtype:
            x = x.astype(self.a.dtype)
        if plan.slot is not None:
            z = (x @ self.a[plan.slot]) @ self.b[plan.slot]
            return add_scaled(y, z, plan.scale)
        shape = y.shape
        rows = len(plan.rows)
        if x.ndim != 3 or x.shape[0] != rows:
            x, y = x.reshape(rows, -1, x.shape[-1]), y.reshape(rows, -1, shape[-1])
        z = mx.gather_mm(mx.gather_mm(x, self.a, plan.lhs, plan.rhs), self.b, plan.lhs, plan.rhs)
        return add_scaled(y, z, plan.scale).reshape(shape)


class EmbeddingBank(SlotBank):
    """A (N, vocabulary, R) and B (N, R, D) of an embedding, which may also serve as the output layer."""

    def add_tokens(self, ids: mx.array, y: mx.array, plan: Plan) -> mx.array:
        """y (B, L, D) plus A[slot, ids] B[slot]: ids (B, L)."""
        if plan.slot is not None:
            return add_scaled(y, self.a[plan.slot][ids] @ self.b[plan.slot], plan.scale)
        z = self.a[plan.rhs[:, None], ids]
        return add_scaled(y, mx.gather_mm(z, self.b, plan.lhs, plan.rhs), plan.scale)

    def add_logits(self, x: mx.array, y: mx.array, plan: Plan) -> mx.array:
        """y (B, L, vocabulary) plus (x B^T) A^T: x (B, L, D)."""
        if x.dtype != self.a.dtype:
            x = x.astype(self.a.dtype)
        b, a = self.b.swapaxes(-1, -2), self.a.swapaxes(-1, -2)
        if plan.slot is not None:
            return add_scaled(y, (x @ b[plan.slot]) @ a[plan.slot], plan.scale)
        return add_scaled(y, mx.gather_mm(mx.gather_mm(x, b, plan.lhs, plan.rhs), a, plan.lhs, plan.rhs), plan.scale)


@cache
def _linear_class(base: type[nn.Module]) -> type[nn.Module]:
    class Banked(base):  # type: ignore[valid-type,misc]
        lora_bank: SlotBank

        def __call__(self, x: mx.array) -> Any:
            y = base.__call__(self, x)
            bank = self.lora_bank
            plan = bank.stage.plan
            return bank.add(x, y, plan) if bank.path in plan.layers else y

    return _named(Banked, base)


@cache
def _embedding_class(base: type[nn.Module]) -> type[nn.Module]:
    class Banked(base):  # type: ignore[valid-type,misc]
        lora_bank: EmbeddingBank

        def __call__(self, ids: mx.array) -> Any:
            y = base.__call__(self, ids)
            plan = self.lora_bank.stage.plan
            return self.lora_bank.add_tokens(ids, y, plan) if self.lora_bank.path in plan.layers else y

        def as_linear(self, x: mx.array) -> Any:
            y = base.as_linear(self, x)  # type: ignore[attr-defined]
            plan = self.lora_bank.stage.plan
            return self.lora_bank.add_logits(x, y, plan) if self.lora_bank.path in plan.layers else y

    return _named(Banked, base)


def _named(cls: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    cls.__name__ = cls.__qualname__ = f"Banked{base.__name__}"
    return cls


def dense_dims(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear or (vocabulary, D) of an Embedding, quantized or not."""
    rows, columns = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        columns = columns * 32 // layer.bits
    return (rows, columns) if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding) else (columns, rows)


def adopt(layer: nn.Module, bank: SlotBank) -> None:
    """Make `layer` add what `bank` holds, instead of what a bank before it held."""
    cls: Any = type(layer)
    if not hasattr(layer, "lora_bank"):
        layer.__class__ = _embedding_class(cls) if isinstance(bank, EmbeddingBank) else _linear_class(cls)
    layer.lora_bank = bank

"""The memory of a bank: which layers have slots, what they cost, and writing and clearing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mlx_router.compute import mx, nn
from mlx_router.errors import AdapterTooLarge
from mlx_router.lora.binding import AdapterVersion
from mlx_router.lora.experts import ExpertBank, ExpertPool, Route, adopt_parent
from mlx_router.lora.layers import EmbeddingBank, SlotBank, Stage, adopt
from mlx_router.lora.load import LoraPair
from mlx_router.lora.validate import SWITCH, Target, named_modules


class LayerStore:
    """Banks of every layer that any adapter has touched so far."""

    def __init__(
        self,
        *,
        model: nn.Module,
        targets: Mapping[str, Target],
        stage: Stage,
        slots: int,
        max_rank: int,
        budget_bytes: int,
        expert_slots: int,
        dtype: mx.Dtype,
    ) -> None:
        self.modules = named_modules(model)
        self._targets = targets
        self.stage, self.slots, self.max_rank = stage, slots, max_rank
        self.budget_bytes, self.dtype = budget_bytes, dtype
        self.bytes = 0
        self.banks: dict[str, SlotBank | ExpertBank] = {}
        self._routes: dict[str, Route] = {}  # by the path of the switch parent
        self._max_expert_slots = expert_slots
        self._pool: ExpertPool | None = None

    @property
    def expert_slots(self) -> int:
        """Slots of the experts' pool; before it exists, as many as it may have."""
        return self._max_expert_slots if self._pool is None else self._pool.slots

    def check_budget(self, name: str, targets: Iterable[Target]) -> None:
        """Raise AdapterTooLarge when the banks that an adapter still needs do not fit beside the others."""
        new = [target for target in targets if target.path not in self.banks]
        dense = sum(self._dense_bytes(target) for target in new if target.kind != "switch")
        per_slot = sum(self._expert_bytes(target, 1) for target in new if target.kind == "switch")
        left = self.budget_bytes - self.bytes
        least = per_slot * (1 if self._pool is None else self._pool.slots)
        if per_slot and self.expert_slots == 0:
            raise AdapterTooLarge(
                f"adapter {name} adapts routed experts, which would need {per_slot} bytes a slot; "
                "the bank has no slots for such adapters"
            )
        if dense + least > left:
            parts = [f"{dense} bytes for {self.slots} slots of rank {self.max_rank}"] if dense else []
            if per_slot:
                count = 1 if self._pool is None else self._pool.slots
                parts.append(f"{least} bytes for {count} experts' slots of {per_slot} bytes")
            raise AdapterTooLarge(
                f"adapter {name} would need {' and '.join(parts)}: {dense + least} bytes, "
                f"but {left} of the bank's {self.budget_bytes} bytes are left"
            )

    def allocate(self, targets: Iterable[Target]) -> None:
        """Make banks for targets that have none yet, and adopt their layers. The budget has been checked."""
        new = [target for target in targets if target.path not in self.banks]
        if not new:
            return
        switches = [target for target in new if target.kind == "switch"]
        dense_bytes = sum(self._dense_bytes(target) for target in new if target.kind != "switch")
        if switches and self._pool is None:
            self._pool = ExpertPool(self._affordable_expert_slots(switches, dense_bytes), self.dtype)
        for target in new:
            if target.kind == "switch":
                self._new_expert(target, self._pool)
            else:
                self._new_dense(target)

    def _affordable_expert_slots(self, switches: Sequence[Target], dense_bytes: int) -> int:
        """One slot, and further ones only while banks for all linear layers would still fit in the budget."""
        per_slot = sum(self._expert_bytes(target, 1) for target in switches)
        later = sum(
            self._dense_bytes(target)
            for target in self._targets.values()
            if target.kind == "linear" and target.path not in self.banks
        )
        left = self.budget_bytes - self.bytes - max(dense_bytes, later)
        return max(1, min(self._max_expert_slots, left // per_slot))

    def write(self, version: AdapterVersion, pairs: Mapping[str, LoraPair]) -> None:
        """Write every matrix of an adapter into the version's slots."""
        self._quiesce()
        for path, pair in pairs.items():
            bank = self.banks[path]
            slot = version.expert_slot if isinstance(bank, ExpertBank) else version.slot
            bank.write(slot, pair.a, pair.b)
        if version.expert_slot and self._pool is not None:
            self._pool.set_scale(version.expert_slot, version.scale)

    def clear(self, version: AdapterVersion) -> None:
        """Zero the version's slots."""
        self._quiesce()
        for path in version.layers:
            bank = self.banks[path]
            bank.clear(version.expert_slot if isinstance(bank, ExpertBank) else version.slot)

    def _quiesce(self) -> None:
        """Wait for steps in flight: none may read a slot while it changes hands."""
        mx.synchronize()
        if self.stage.stream is not None:
            mx.synchronize(self.stage.stream)

    def _dense_bytes(self, target: Target) -> int:
        return SlotBank.bytes_needed(target.inputs, target.outputs, self.slots, self.max_rank, self.dtype)

    def _expert_bytes(self, target: Target, slots: int) -> int:
        return ExpertBank.bytes_needed(target.inputs, target.outputs, target.experts, slots, self.max_rank, self.dtype)

    def _new_dense(self, target: Target) -> None:
        cls = EmbeddingBank if target.kind == "embedding" else SlotBank
        bank = cls(target.path, self.stage, target.inputs, target.outputs, self.slots, self.max_rank, self.dtype)
        adopt(target.layer, bank)
        self.banks[target.path] = bank
        self.bytes += self._dense_bytes(target)

    def _new_expert(self, target: Target, pool: ExpertPool | None) -> None:
        if pool is None:
            raise RuntimeError("the experts' pool is made before its banks")
        slots = pool.slots
        bank = ExpertBank(target.path, target.inputs, target.outputs, target.experts, slots, self.max_rank, self.dtype)
        if target.parent not in self._routes:
            route = self._routes[target.parent] = Route(self.stage, pool)
            parent = self.modules[target.parent]
            layers = [layer for layer in named_modules(parent).values() if isinstance(layer, SWITCH)]
            adopt_parent(parent, route, layers)
        self._routes[target.parent].paths.add(target.path)
        target.layer.lora_bank = bank
        self.banks[target.path] = bank
        self.bytes += self._expert_bytes(target, slots)

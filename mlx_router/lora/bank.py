"""The adapter bank: one resident base model, many adapters in slots, any mix of them in one batch.

State of a version:

    load ──> resident ──evict (idle, unpinned, oldest)──> gone
                │
              retire ──> retired ──last lease released──> gone

A version that is gone has had its slot cleared; a slot is given away only then. Everything here runs on the
one thread that owns mlx.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_router.compute import mx, nn  # before mlx_lm: it loads the BLAS

# isort: split
from mlx_lm.models.cache import make_prompt_cache

from mlx_router.errors import AdapterIncompatible, AdapterNotFound, SlotsBusy
from mlx_router.lora.binding import BASE, IDLE, AdapterVersion, BindingCache, Plan, make_plan
from mlx_router.lora.layers import Stage
from mlx_router.lora.load import AdapterFiles, LoraPair
from mlx_router.lora.memory import NUMPY_DTYPES
from mlx_router.lora.store import LayerStore
from mlx_router.lora.validate import find_targets, match, named_modules

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Entry:
    version: AdapterVersion
    leases: int = 0
    pinned: bool = False
    retired: bool = False
    last_used: float = field(default_factory=time.monotonic)  # seconds, monotonic


class Lease:
    """One request's hold on an adapter version; while it is held the version's slot keeps its weights."""

    def __init__(self, version: AdapterVersion, on_release: Callable[[AdapterVersion], None]) -> None:
        self.version = version
        self._on_release: Callable[[AdapterVersion], None] | None = on_release

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def released(self) -> bool:
        return self._on_release is None

    def release(self) -> None:
        """Give the version back; further calls do nothing."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self.version)


class BankedModel(nn.Module):
    """The model to generate with: takes the rows' adapters from the last element of the cache."""

    def __init__(self, bank: AdapterBank, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self._bank = bank

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None, **kwargs: Any) -> Any:
        """inputs (B, L) token ids -> logits (B, L, vocabulary). ValueError unless the cache binds B rows."""
        if not cache or not isinstance(cache[-1], BindingCache):
            return self.model(inputs, cache=cache, **kwargs)
        binding: BindingCache = cache[-1]
        if len(binding.rows) != inputs.shape[0]:
            raise ValueError(f"{inputs.shape[0]} rows, but the prompt cache binds {len(binding.rows)}")
        stage = self._bank.stage
        stage.plan, stage.stream = self._bank.plan(binding), mx.default_stream(mx.default_device())
        try:
            return self.model(inputs, cache=cache[:-1], **kwargs)
        finally:
            stage.plan = IDLE

    @property
    def layers(self) -> Any:
        return self.model.layers

    def make_cache(self) -> list[Any]:
        """An empty prompt cache of one row that uses the base."""
        return [*make_prompt_cache(self.model), BindingCache([BASE])]


class AdapterBank:
    """Adapters of one model, in numbered slots.

    `slots` counts the base (slot 0); `expert_slots` is the most that the pool for adapters of routed experts
    may have, fewer if `budget_bytes` allows no more. `dtype` defaults to `bank_dtype(model)`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int = 33,
        max_rank: int = 16,
        budget_bytes: int = 4 * 2**30,
        expert_slots: int = 4,
        dtype: mx.Dtype | None = None,
    ) -> None:
        if slots < 2 or max_rank < 1 or expert_slots < 0 or budget_bytes < 0:
            raise ValueError("slots >= 2, max_rank >= 1, expert_slots >= 0 and budget_bytes >= 0 are needed")
        self.model, self.slots, self.max_rank = model, slots, max_rank
        self.stage = Stage()
        self.targets = find_targets(model)
        self.store = LayerStore(
            model=model,
            targets=self.targets,
            stage=self.stage,
            slots=slots,
            max_rank=max_rank,
            budget_bytes=budget_bytes,
            expert_slots=expert_slots,
            dtype=dtype or bank_dtype(model),
        )
        self.wrapped = BankedModel(self, model)
        self.loads = self.evictions = 0
        self._entries: dict[int, _Entry] = {}  # by uid, of every version that has a slot
        self._by_name: dict[str, AdapterVersion] = {}  # the version that new requests get
        self._pinned: set[str] = set()
        self._uids = itertools.count(1)
        self._epoch = 0  # grows when a slot changes hands

    def load(
        self, files: AdapterFiles, *, name: str | None = None, replaces: AdapterVersion | None = None
    ) -> AdapterVersion:
        """Put an adapter into a slot: a new version, which `acquire` accepts from now on.

        `replaces` is retired once the new version is in place; while it is idle its own slot may be reused if
        no other is free. Raises, before anything is written: AdapterIncompatible, AdapterTooLarge, SlotsBusy.
        """
        name = name or files.name
        replaces = replaces or self._by_name.get(name)
        pairs = match(files, self.targets, self.max_rank)
        self.store.check_budget(name, [self.targets[path] for path in pairs])
        uses_experts = any(pair.experts for pair in pairs.values())
        victims = self._make_room(replaces, uses_experts)
        self.store.allocate([self.targets[path] for path in pairs])
        for victim in victims:
            if victim is not replaces:
                self.evictions += 1
                log.info("evicted adapter=%s digest=%s slot=%d", victim.name, victim.digest, victim.slot)
            self._drop(victim)
        version = self._write(files, name, pairs, uses_experts)
        if replaces is not None and replaces.uid in self._entries:
            self.retire(replaces)
        return version

    def _write(
        self, files: AdapterFiles, name: str, pairs: Mapping[str, LoraPair], uses_experts: bool
    ) -> AdapterVersion:
        slot = self._free_slot()
        version = AdapterVersion(
            name=name,
            digest=files.digest,
            uid=next(self._uids),
            slot=slot,
            expert_slot=self._free_expert_slot() if uses_experts else 0,
            rank=files.rank,
            scale=files.scale,
            layers=frozenset(pairs),
        )
        try:
            self.store.write(version, pairs)
        except BaseException:
            self.store.clear(version)  # a free slot is a zero slot, whatever stopped the writing
            raise
        self._entries[version.uid] = _Entry(version, pinned=name in self._pinned)
        self._by_name[name] = version
        self._epoch += 1
        self.loads += 1
        return version

    def find(self, name: str) -> AdapterVersion | None:
        """The version that new requests for `name` get, or None when it is not resident."""
        return self._by_name.get(name)

    def acquire(self, version: AdapterVersion | None = None) -> Lease:
        """Hold a version for one request; None is the base. Raises AdapterNotFound when it is gone."""
        if version is None or version is BASE:
            return Lease(BASE, lambda _: None)
        entry = self._entries.get(version.uid)
        if entry is None or entry.retired:
            raise AdapterNotFound(f"adapter {version.name} ({version.digest}) is no longer resident")
        entry.leases += 1
        entry.last_used = time.monotonic()
        return Lease(version, self._released)

    def _released(self, version: AdapterVersion) -> None:
        entry = self._entries[version.uid]
        entry.leases -= 1
        entry.last_used = time.monotonic()
        if entry.retired and entry.leases == 0:
            self._drop(version)

    def retire(self, version: AdapterVersion) -> None:
        """Unload: no new leases; the slot is cleared when the last one is released. Idempotent."""
        entry = self._entries.get(version.uid)
        if entry is None or entry.retired:
            return
        entry.retired = True
        if self._by_name.get(version.name) is version:
            del self._by_name[version.name]
        if entry.leases == 0:
            self._drop(version)

    def pin(self, name: str) -> None:
        """Never evict `name`, nor versions of it that are loaded later."""
        self._set_pin(name, True)

    def unpin(self, name: str) -> None:
        self._set_pin(name, False)

    def _set_pin(self, name: str, pinned: bool) -> None:
        (self._pinned.add if pinned else self._pinned.discard)(name)
        for entry in self._entries.values():
            if entry.version.name == name:
                entry.pinned = pinned

    def make_cache(self, lease: Lease) -> list[Any]:
        """An empty prompt cache of one row bound to the lease's version."""
        self._check(lease)
        return [*make_prompt_cache(self.model), BindingCache([lease.version])]

    def rebind(self, cache: list[Any], lease: Lease) -> list[Any]:
        """Bind a copied prompt cache of one row, with or without a binding, to a lease of the same digest.

        Raises AdapterIncompatible when it was computed under another digest.
        """
        self._check(lease)
        if cache and isinstance(cache[-1], BindingCache):
            digests = {row.digest for row in cache[-1].rows}
            if digests != {lease.digest}:
                raise AdapterIncompatible(f"a prompt cache of {', '.join(digests)} cannot serve {lease.digest}")
            cache = cache[:-1]
        return [*cache, BindingCache([lease.version])]

    def _check(self, lease: Lease) -> None:
        if lease.released:
            raise AdapterNotFound(f"the lease of adapter {lease.version.name} has been released")

    def plan(self, binding: BindingCache) -> Plan:
        """The plan of a batch, checked: every row's version still owns its slot."""
        plan = binding.plan
        if plan is not None and plan.epoch == self._epoch:
            return plan
        for row in binding.rows:
            if row is not BASE and row.uid not in self._entries:
                raise AdapterNotFound(f"a row is bound to adapter {row.name}, whose slot was given away")
        binding.plan = plan = make_plan(binding.rows, self._epoch, self.store.dtype)
        return plan

    def _make_room(self, replaces: AdapterVersion | None, uses_experts: bool) -> list[AdapterVersion]:
        """Versions to drop so that a slot (and an experts' slot) is free; SlotsBusy when none can go."""
        victims: list[AdapterVersion] = []
        if not self._slots_left(victims):
            victims.append(self._victim(replaces, experts=False))
        if uses_experts and not self._expert_slots_left(victims):
            victims.append(self._victim(replaces, experts=True))
        return victims

    def _slots_left(self, without: list[AdapterVersion]) -> bool:
        return len(self._entries) - len(without) < self.slots - 1

    def _expert_slots_left(self, without: list[AdapterVersion]) -> bool:
        used = [entry.version for entry in self._entries.values() if entry.version.expert_slot]
        return len([version for version in used if version not in without]) < self.store.expert_slots

    def _victim(self, replaces: AdapterVersion | None, *, experts: bool) -> AdapterVersion:
        idle = [
            entry
            for entry in self._entries.values()
            if entry.leases == 0 and (entry.version.expert_slot or not experts)
        ]
        if replaces is not None and any(entry.version is replaces for entry in idle):
            return replaces
        idle = [entry for entry in idle if not entry.pinned]
        if not idle:
            kind, count = ("experts' slots", self.store.expert_slots) if experts else ("slots", self.slots - 1)
            raise SlotsBusy(f"all {count} {kind} of the adapter bank are pinned or in use", retry_after_s=1.0)
        return min(idle, key=lambda entry: entry.last_used).version

    def _free_slot(self) -> int:
        taken = {entry.version.slot for entry in self._entries.values()}
        return next(slot for slot in range(1, self.slots) if slot not in taken)

    def _free_expert_slot(self) -> int:
        taken = {entry.version.expert_slot for entry in self._entries.values()}
        return next(slot for slot in range(1, self.store.expert_slots + 1) if slot not in taken)

    def _drop(self, version: AdapterVersion) -> None:
        self.store.clear(version)
        del self._entries[version.uid]
        if self._by_name.get(version.name) is version:
            del self._by_name[version.name]
        self._epoch += 1

    def stats(self) -> dict[str, Any]:
        """Plain data for metrics and the admin endpoint; `last_used` is seconds of the monotonic clock."""
        resident = [
            {
                "name": entry.version.name,
                "digest": entry.version.digest,
                "slot": entry.version.slot,
                "expert_slot": entry.version.expert_slot,
                "rank": entry.version.rank,
                "pinned": entry.pinned,
                "leases": entry.leases,
                "retired": entry.retired,
                "last_used": entry.last_used,
            }
            for entry in self._entries.values()
        ]
        return {
            "slots": self.slots,
            "used": len(self._entries),
            "expert_slots": self.store.expert_slots,
            "bytes": self.store.bytes,
            "budget_bytes": self.store.budget_bytes,
            "max_rank": self.max_rank,
            "resident": resident,
            "loads": self.loads,
            "evictions": self.evictions,
        }


def bank_dtype(model: nn.Module) -> mx.Dtype:
    """The dtype of the model's activations, known from its embedding; float32 on CPU, where gather_mm has no other."""
    if mx.default_device() == mx.Device(mx.cpu):
        return mx.float32
    for layer in named_modules(model).values():
        if isinstance(layer, nn.QuantizedEmbedding):
            dtype = layer.scales.dtype
        elif isinstance(layer, nn.Embedding):
            dtype = layer.weight.dtype
        else:
            continue
        return dtype if dtype in NUMPY_DTYPES else mx.bfloat16
    return mx.float32

"""Slots: who gets them, who gives them up, what they cost, and that nothing is written before all is checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.utils import load_adapters

from mlx_router.compute import mx
from mlx_router.errors import AdapterIncompatible, AdapterNotFound, AdapterTooLarge, SlotsBusy
from mlx_router.lora.bank import AdapterBank, bank_dtype
from mlx_router.lora.binding import BindingCache
from mlx_router.lora.experts import ExpertBank
from mlx_router.lora.layers import SlotBank
from mlx_router.lora.load import AdapterFiles, read_adapter
from mlx_router.lora.memory import NUMPY_DTYPES, SlotMemory, to_host
from tests.tiny_models import open_model, save_adapter, save_model

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
Adapter = Callable[..., AdapterFiles]
TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    shape = {"num_hidden_layers": 2}
    return {kind: save_model(home / kind, kind, **shape) for kind in ("qwen3", "qwen3_moe")}


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter by name, made once."""
    home = tmp_path_factory.mktemp("adapters")
    made: dict[tuple[Any, ...], AdapterFiles] = {}

    def make(name: str, kind: str = "qwen3", **options: Any) -> AdapterFiles:
        key = (name, kind, *sorted(options.items()))
        if key not in made:
            options = {"keys": ATTENTION, "seed": len(made) + 1, **options}
            made[key] = read_adapter(save_adapter(home / str(len(made)) / name, bases[kind], **options))
        return made[key]

    return make


def bank_of(base: Path, **options: Any) -> AdapterBank:
    return AdapterBank(open_model(base), **{"slots": 4, "max_rank": 8, **options})


def logits(bank: AdapterBank, *leases: Any) -> mx.array:
    """Of the last of TOKENS, one row a lease: (B, vocabulary)."""
    caches = [bank.make_cache(lease) for lease in leases]
    merged = [column[0].merge(list(column)) for column in zip(*caches, strict=True)]
    return bank.wrapped(mx.array([TOKENS] * len(leases)), cache=merged)[:, -1]


def same(a: mx.array, b: mx.array) -> bool:
    return bool(mx.allclose(a, b, atol=1e-4))


def contents(bank: AdapterBank, slot: int) -> float:
    """Sum of |values| in a slot over all dense banks."""
    return sum(
        float(np.abs(part.view[slot]).sum())
        for layer in bank.store.banks.values()
        if isinstance(layer, SlotBank)
        for part in (layer._a, layer._b)
    )


def test_versions_are_slots_and_replacing_makes_another(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    first = bank.load(adapter("sql"))
    second = bank.load(adapter("rust"))
    assert (first.slot, second.slot) == (1, 2)
    assert bank.find("sql") is first
    running = bank.acquire(first)
    before = logits(bank, running)
    third = bank.load(adapter("sql", strength=0.5))
    assert third.slot == 3
    assert bank.find("sql") is third
    assert not same(before, logits(bank, bank.acquire(third)))
    assert same(before, logits(bank, running))  # in flight: still the version that it was admitted with
    with pytest.raises(AdapterNotFound, match="no longer resident"):
        bank.acquire(first)
    running.release()
    assert contents(bank, 1) == 0
    assert bank.stats()["used"] == 2


def test_release_is_idempotent_and_a_released_lease_is_useless(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    version = bank.load(adapter("sql"))
    one, two = bank.acquire(version), bank.acquire(version)
    one.release()
    one.release()
    assert bank.stats()["resident"][0]["leases"] == 1
    with pytest.raises(AdapterNotFound, match="released"):
        bank.make_cache(one)
    bank.retire(version)
    bank.retire(version)
    assert bank.stats()["resident"][0]["retired"]
    two.release()
    assert bank.stats()["used"] == 0


def test_the_base_needs_no_slot(bases: dict[str, Path]) -> None:
    bank = bank_of(bases["qwen3"])
    lease = bank.acquire(None)
    assert (lease.version.slot, lease.digest) == (0, "base")
    assert bank.stats()["used"] == 0
    lease.release()


def test_the_oldest_idle_unpinned_adapter_is_evicted(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    versions = {name: bank.load(adapter(name)) for name in ("a", "b", "c")}
    bank.pin("a")
    bank.acquire(versions["b"]).release()  # b was used after c
    bank.load(adapter("d"))
    assert bank.find("c") is None
    assert {entry["name"] for entry in bank.stats()["resident"]} == {"a", "b", "d"}
    held = bank.acquire(bank.find("d"))
    bank.load(adapter("e"))
    assert bank.find("b") is None
    bank.pin("e")
    with pytest.raises(SlotsBusy, match="all 3 slots") as caught:
        bank.load(adapter("f"))
    assert caught.value.retry_after_s
    bank.unpin("a")
    bank.load(adapter("f"))
    assert {entry["name"] for entry in bank.stats()["resident"]} == {"d", "e", "f"}
    assert bank.stats()["evictions"] == 3
    held.release()


def test_a_full_bank_replaces_an_idle_adapter_in_its_own_slot(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    old = [bank.load(adapter(name)) for name in ("a", "b", "c")]
    new = bank.load(adapter("b", strength=0.7))
    assert new.slot == old[1].slot
    assert [bank.find(name) for name in ("a", "b", "c")] == [old[0], new, old[2]]
    assert bank.stats()["evictions"] == 0


def test_slots_that_change_hands_leave_nothing_behind(bases: dict[str, Path], adapter: Adapter) -> None:
    """A small adapter in a slot that held a larger one gives what it gives alone."""
    bank = bank_of(bases["qwen3"], slots=2)
    bank.load(adapter("big", rank=8, keys=(*ATTENTION, "mlp.up_proj")))
    small = bank.load(adapter("small", rank=2, num_layers=1))
    fresh = bank_of(bases["qwen3"], slots=2)
    alone = fresh.load(adapter("small", rank=2, num_layers=1))
    # beside a base row, so that layers are computed which the small adapter does not touch
    ours = logits(bank, bank.acquire(small), bank.acquire(None))
    assert mx.array_equal(ours, logits(fresh, fresh.acquire(alone), fresh.acquire(None)))


def test_swaps_cost_no_memory(bases: dict[str, Path], adapter: Adapter) -> None:
    """500 swaps while a row is being decoded: mlx holds what it held after the first."""
    bank = bank_of(bases["qwen3"])
    lease = bank.acquire(bank.load(adapter("busy")))
    cache = [column.merge([column]) for column in bank.make_cache(lease)]
    token = bank.wrapped(mx.array([TOKENS]), cache=cache)[:, -1:].argmax(-1)
    sizes = []
    for turn in range(500):
        bank.load(adapter("sql", strength=0.3 + turn % 2), name="sql")
        if turn % 10 == 0:
            token = bank.wrapped(token, cache=cache)[:, -1:].argmax(-1)
            mx.async_eval(token)  # in flight during the next swaps
        sizes.append(mx.get_active_memory())
    mx.eval(token)
    assert bank.stats()["used"] == 2
    assert max(sizes[250:]) <= 1.05 * max(sizes[:20])


def test_budget_is_computed_before_allocation(bases: dict[str, Path], adapter: Adapter) -> None:
    # two layers of q (64 -> 128) and v (64 -> 64), 4 slots of rank 8, float32
    need = 2 * ((64 + 128) + (64 + 64)) * 8 * 4 * 4
    tight = bank_of(bases["qwen3"], budget_bytes=need)
    tight.load(adapter("sql"))
    assert tight.stats()["bytes"] == need
    held = sum(part.array.nbytes for layer in tight.store.banks.values() for part in (layer._a, layer._b))
    assert held == need
    with pytest.raises(AdapterTooLarge, match="but 0 of the bank's"):
        tight.load(adapter("more", keys=("mlp.up_proj",)))
    short = bank_of(bases["qwen3"], budget_bytes=need - 1)
    with pytest.raises(AdapterTooLarge, match=f"need {need} bytes for 4 slots of rank 8"):
        short.load(adapter("sql"))
    assert short.stats()["bytes"] == 0
    assert not short.store.banks


def test_every_mismatch_is_listed_and_nothing_is_written(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    good = adapter("sql")
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    modules = dict(good.modules)
    modules["model.layers.9.self_attn.q_proj"] = modules[q]
    modules["model.norm"] = modules[q]
    modules[v] = replace(modules[v], b=np.zeros((8, 3), np.float32))
    modules["model.layers.0.mlp.up_proj"] = replace(modules[q], a=np.zeros((64, 16)), b=np.zeros((16, 128)))
    with pytest.raises(AdapterIncompatible) as caught:
        bank.load(replace(good, modules=modules))
    for part in (
        "(5)",
        "model.layers.9.self_attn.q_proj: the base model has no such module",
        "model.norm: the base model has no such module",
        f"{v}.lora_b: shape (8, 3), the base model needs (8, 64)",
        "model.layers.0.mlp.up_proj: rank 16, the bank holds at most 8",
        "model.layers.0.mlp.up_proj: outside the num_layers and keys",
    ):
        assert part in caught.value.message
    assert bank.stats()["used"] == bank.stats()["bytes"] == 0


def test_a_write_that_fails_leaves_a_zero_slot(
    bases: dict[str, Path], adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(bases["qwen3"])
    kept = bank.load(adapter("a"))
    write, calls = SlotBank.write, iter(range(99))

    def failing(self: SlotBank, *args: Any) -> None:
        write(self, *args)
        if next(calls) == 2:
            raise MemoryError

    monkeypatch.setattr(SlotBank, "write", failing)
    with pytest.raises(MemoryError):
        bank.load(adapter("b"))
    assert contents(bank, 2) == 0
    assert bank.find("a") is kept
    assert bank.find("b") is None


def test_base_only_steps_touch_no_bank(
    bases: dict[str, Path], adapter: Adapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exported graph of a base-only call is the graph of the plain model, node for node."""
    bank = bank_of(bases["qwen3_moe"])
    bank.load(adapter("sql", "qwen3_moe", keys=(*ATTENTION, "mlp.switch_mlp.up_proj")))
    plain = open_model(bases["qwen3_moe"])

    def nodes(name: str, call: Callable[[mx.array], mx.array]) -> int:
        mx.export_to_dot(str(tmp_path / name), call(mx.array([TOKENS])))
        return (tmp_path / name).read_text().count("label")

    ours = nodes("ours", lambda tokens: bank.wrapped(tokens, cache=bank.wrapped.make_cache()))
    assert ours == nodes("plain", lambda tokens: plain(tokens, cache=bank.wrapped.make_cache()[:-1]))
    lease = bank.acquire(bank.find("sql"))
    assert nodes("one", lambda tokens: bank.wrapped(tokens, cache=bank.make_cache(lease))) > ours


def test_adapters_of_experts_have_a_pool_of_their_own(bases: dict[str, Path], adapter: Adapter) -> None:
    experts = (*ATTENTION, "mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj")
    bank = bank_of(bases["qwen3_moe"], slots=5, expert_slots=2)
    first, second = (bank.load(adapter(name, "qwen3_moe", keys=experts)) for name in ("a", "b"))
    dense = bank.load(adapter("c", "qwen3_moe"))
    assert [version.expert_slot for version in (first, second, dense)] == [1, 2, 0]
    sizes = {layer.a.shape[1] for layer in bank.store.banks.values() if isinstance(layer, ExpertBank)}
    assert sizes == {2}
    held = bank.acquire(second)
    third = bank.load(adapter("d", "qwen3_moe", keys=experts))  # there are free slots, but no free experts' slot
    assert third.expert_slot == 1
    assert bank.find("a") is None
    bank.pin("d")
    with pytest.raises(SlotsBusy, match="all 2 experts' slots"):
        bank.load(adapter("e", "qwen3_moe", keys=experts))
    held.release()


def test_experts_are_refused_with_the_bytes_that_they_would_need(bases: dict[str, Path], adapter: Adapter) -> None:
    files = adapter("a", "qwen3_moe", keys=("mlp.switch_mlp.gate_proj",))
    need = 2 * 8 * (64 + 64) * 8 * 4  # layers, experts, in + out, rank, float32
    with pytest.raises(AdapterTooLarge, match=f"need {need} bytes a slot"):
        bank_of(bases["qwen3_moe"], expert_slots=0).load(files)
    with pytest.raises(AdapterTooLarge, match=f"need {need} bytes for 1 experts' slots"):
        bank_of(bases["qwen3_moe"], budget_bytes=need - 1).load(files)
    one = bank_of(bases["qwen3_moe"], budget_bytes=2 * need)  # no room for the linear layers beside two slots
    one.load(files)
    assert one.stats()["expert_slots"] == 1


def test_a_prompt_cache_goes_only_to_its_own_digest(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    lease = bank.acquire(bank.load(adapter("a")))
    cache = bank.make_cache(lease)
    bank.wrapped(mx.array([TOKENS]), cache=cache)
    copied = copy.deepcopy(cache)
    lease.release()
    again = bank.acquire(bank.load(adapter("a")))  # another version of the same digest
    assert again.version is not lease.version
    rebound = bank.rebind(copied, again)
    assert rebound[-1].rows == (again.version,)
    other = bank.acquire(bank.load(adapter("b")))
    for wrong in (other, bank.acquire(None)):
        with pytest.raises(AdapterIncompatible, match="cannot serve"):
            bank.rebind(copied, wrong)


def test_a_row_whose_slot_was_given_away_is_never_computed(bases: dict[str, Path], adapter: Adapter) -> None:
    bank = bank_of(bases["qwen3"])
    version = bank.load(adapter("a"))
    lease = bank.acquire(version)
    cache = bank.make_cache(lease)
    bank.wrapped(mx.array([TOKENS]), cache=cache)
    lease.release()
    bank.retire(version)
    with pytest.raises(AdapterNotFound, match="slot was given away"):
        bank.wrapped(mx.array([[1]]), cache=cache)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_models(bases: dict[str, Path], adapter: Adapter, dtype: mx.Dtype) -> None:
    """On a CPU the bank stays in float32, as mlx-lm's adapters do, and only the sum is rounded."""
    files = adapter("a", strength=0.1)
    model, stock = open_model(bases["qwen3"]), load_adapters(open_model(bases["qwen3"]), str(files.path))
    model.set_dtype(dtype)
    for name, layer in stock.named_modules():
        if not name.endswith(("lora_a", "lora_b")) and "weight" in layer:
            layer.weight = layer.weight.astype(dtype)
    stock.eval()
    bank = AdapterBank(model, slots=3)
    assert bank_dtype(model) == bank.store.dtype == mx.float32
    ours = logits(bank, bank.acquire(bank.load(files)), bank.acquire(None))
    expected = stock(mx.array([TOKENS]))[0, -1]
    assert ours.dtype == expected.dtype == dtype
    assert float(mx.abs(ours[0] - expected).max()) < 0.02 * float(mx.abs(expected).max())


@pytest.mark.parametrize("dtype", list(NUMPY_DTYPES), ids=str)
def test_memory_is_shared_between_numpy_and_mlx(dtype: mx.Dtype) -> None:
    memory = SlotMemory((3, 2, 4), dtype)
    values = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    memory.view[1] = to_host(values, dtype)
    assert mx.array_equal(memory.array[1], mx.array(values).astype(dtype))
    assert float(mx.abs(memory.array[0]).sum() + mx.abs(memory.array[2]).sum()) == 0


def test_flattened_rows_are_recognised(bases: dict[str, Path], adapter: Adapter) -> None:
    """Some models pass (B * L, D) to their layers: the update is that of (B, L, D)."""
    bank = bank_of(bases["qwen3"])
    versions = [bank.load(adapter(name)) for name in ("a", "b")]
    plan = bank.plan(BindingCache(versions))
    layer = bank.store.banks["model.layers.0.self_attn.q_proj"]
    assert isinstance(layer, SlotBank)
    x, y = mx.random.normal((2, 5, 64)), mx.random.normal((2, 5, 128))
    flat = layer.add(x.reshape(10, 64), y.reshape(10, 128), plan)
    assert mx.array_equal(flat.reshape(2, 5, 128), layer.add(x, y, plan))


def test_a_second_bank_takes_the_model_over(bases: dict[str, Path], adapter: Adapter) -> None:
    model = open_model(bases["qwen3_moe"])
    files = adapter("a", "qwen3_moe", keys=(*ATTENTION, "mlp.switch_mlp.up_proj"))
    first, second = (AdapterBank(model, slots=3) for _ in range(2))
    alone = logits(first, first.acquire(first.load(files)))
    assert mx.array_equal(logits(second, second.acquire(second.load(files))), alone)


def test_rows_and_bindings_must_agree(bases: dict[str, Path]) -> None:
    bank = bank_of(bases["qwen3"])
    with pytest.raises(ValueError, match="2 rows, but the prompt cache binds 1"):
        bank.wrapped(mx.array([TOKENS, TOKENS]), cache=bank.wrapped.make_cache())


def test_arguments_are_checked(bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="slots >= 2"):
        bank_of(bases["qwen3"], slots=1)

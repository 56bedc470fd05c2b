"""Adapters of routed experts need a slot of their own pool besides an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.errors import SlotsBusy
from mlx_router.lora.load import read_adapter
from mlx_router.specialist.core import Limits
from mlx_router.specialist.job import Failed, Finished
from mlx_router.specialist.loading import Base, load_base
from tests import tiny_chat
from tests.engine_driver import Driver, fresh
from tests.tiny_models import save_adapter, save_model

EXPERTS = ("e1", "e2")
DENSE = ("d1", "d2", "d3")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("experts")
    base = save_model(root / "base", "qwen3_moe", vocab_size=tiny_chat.HIDDEN, num_hidden_layers=1)
    tiny_chat.save_tokenizer(base)
    for seed, name in enumerate((*EXPERTS, *DENSE), start=1):
        keys = ("mlp.switch_mlp.up_proj",) if name in EXPERTS else ("self_attn.q_proj",)
        save_adapter(root / name, base, rank=2, keys=keys, seed=seed)
    return root


@pytest.fixture(scope="module")
def base(root: Path) -> Base:
    return load_base(str(root / "base"), root, max_context=2048)


def make(base: Base, root: Path, **changes: Any) -> Driver:
    fields: dict[str, Any] = {"slots": 3, "expert_slots": 1, "limits": Limits(max_rows=4, prompt_cache_bytes=0)}
    return Driver(fresh(base), root, **(fields | changes))


def ask(driver: Driver, job_id: str, adapter: str, tokens: int = 4) -> None:
    driver.add(job_id, adapter, prompt=(7, 8, 9), max_tokens=tokens, text_state="raw")


def install(driver: Driver, name: str) -> None:
    driver.core.residents.install(name, read_adapter(driver.adapters / name, name=name), replace=False)


def test_an_idle_dense_adapter_is_not_held_for_experts(base: Base, root: Path) -> None:
    """Its slot would not help: the one with the experts' slot is held, under constant load too."""
    driver = make(base, root)
    install(driver, "d1")
    ask(driver, "e1-0", "e1", 9)
    driver.core.step()
    ask(driver, "wants", "e2")
    for number in range(1, 60):
        driver.core.step()
        if driver.events_end("wants"):
            break
        ask(driver, f"e1-{number}", "e1", 9)
    assert driver.reason("wants") == "length"
    assert driver.bank.find("d1") is not None
    driver.drain()


def test_the_first_that_waits_keeps_what_is_held_for_it(base: Base, root: Path) -> None:
    """One waits for any slot, another for an experts' slot: both come to theirs."""
    driver = make(base, root, slots=2)
    ask(driver, "e1-0", "e1", 9)
    ask(driver, "d1-0", "d1", 9)
    driver.core.step()
    ask(driver, "dense", "d2")
    ask(driver, "expert", "e2")
    for number in range(1, 80):
        driver.core.step()
        if driver.events_end("dense") and driver.events_end("expert"):
            break
        ask(driver, f"e1-{number}", "e1", 9)
        ask(driver, f"d1-{number}", "d1", 9)
    assert (driver.reason("dense"), driver.reason("expert")) == ("length", "length")
    driver.drain(5000)


def test_pinned_experts_are_a_clear_refusal(base: Base, root: Path) -> None:
    driver = make(base, root)
    install(driver, "e1")
    driver.core.residents.pin("e1", True)
    ask(driver, "dense", "d1", 30)
    driver.core.step()
    ask(driver, "wants", "e2")
    driver.drain()
    end = driver.end("wants")
    assert isinstance(end, Failed)
    assert isinstance(end.error, SlotsBusy)
    assert driver.reason("dense") == "length"


def test_a_pinned_expert_is_no_obstacle_while_the_pool_has_room(base: Base, root: Path) -> None:
    """What lacks is an ordinary slot, and that of a dense adapter will do."""
    driver = make(base, root, slots=2, expert_slots=2)
    install(driver, "e1")
    driver.core.residents.pin("e1", True)
    ask(driver, "dense", "d1", 12)
    driver.core.step()
    ask(driver, "wants", "e2")
    driver.drain()
    assert (driver.reason("dense"), driver.reason("wants")) == ("length", "length")


def test_a_retired_dense_adapter_is_not_waited_for(base: Base, root: Path) -> None:
    driver = make(base, root)
    install(driver, "e1")
    driver.core.residents.pin("e1", True)
    ask(driver, "leaving", "d1", 1000)
    for _ in range(3):
        driver.core.step()
    driver.core.residents.unload("d1")
    ask(driver, "wants", "e2")
    for _ in range(3):
        driver.core.step()
    assert isinstance(driver.end("wants"), Failed)


def test_nothing_moves_for_an_adapter_that_nobody_waits_for_any_more(base: Base, root: Path) -> None:
    driver = make(base, root)
    ask(driver, "runs", "e1", 100)
    driver.core.step()
    ask(driver, "wants", "e2")
    driver.core.step()
    driver.core.cancel("wants")
    driver.core.cancel("runs")
    assert not driver.core.busy
    assert not driver.core.runnable


add = st.tuples(st.just("add"), st.sampled_from([*EXPERTS, *DENSE]), st.integers(1, 8))
op = st.one_of(
    add,
    add,
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("pin"), st.sampled_from(["e1", "d1"]), st.booleans()),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(ops=st.lists(op, min_size=5, max_size=40), slots=st.integers(1, 3), expert_slots=st.integers(1, 2))
def test_every_job_comes_to_its_end(base: Base, root: Path, ops: list[Any], slots: int, expert_slots: int) -> None:
    driver = make(base, root, slots=slots, expert_slots=expert_slots)
    names: set[str] = set()
    for index, (kind, *rest) in enumerate(ops):
        if kind == "add":
            names.add(f"job{index}")
            ask(driver, f"job{index}", rest[0], rest[1])
        elif kind == "step":
            for _ in range(rest[0]):
                driver.core.step()
        elif kind == "pin":
            driver.core.residents.pin(*rest)
        elif waiting := sorted(name for name in names if not driver.events_end(name)):
            names.remove(waiting[rest[0] % len(waiting)])
            driver.core.cancel(waiting[rest[0] % len(waiting)])
        assert driver.core.runnable == driver.core.busy  # it never waits for nothing, nor looks in vain
    driver.drain()
    for end in map(driver.end, names):
        assert end.reason == "length" if isinstance(end, Finished) else isinstance(end.error, SlotsBusy)
    assert not any(entry["leases"] for entry in driver.bank.stats()["resident"])

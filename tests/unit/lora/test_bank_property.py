"""Random interleavings of insert, cancel, load, replace, unload, pin and prompt-cache reuse on one bank.

What must hold: every token is the one that its row's adapter version gives when it runs alone in stock mlx-lm; a
prompt cache never serves another digest; versions that are gone leave zero slots, and no slot leaks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_adapters

from mlx_router.compute import mx, nn
from mlx_router.errors import AdapterIncompatible, SlotsBusy
from mlx_router.lora.bank import AdapterBank, Lease
from mlx_router.lora.binding import AdapterVersion
from mlx_router.lora.layers import SlotBank
from mlx_router.lora.load import AdapterFiles, read_adapter
from tests.tiny_models import open_model, save_adapter, save_model

PROMPTS = [[7], [1, 2, 3], list(range(40, 61))]
LENGTH = 12  # tokens known of every (adapter, prompt)
NEW_TOKENS = 5
NAMES = ("sql", "rust")
ADAPTERS = [
    {"rank": 4, "keys": ("self_attn.q_proj", "self_attn.v_proj")},
    {"rank": 8, "keys": ("mlp.up_proj", "self_attn.o_proj"), "num_layers": 1},
    {"rank": 2, "keys": ("self_attn.q_proj", "mlp.down_proj"), "scale": 4.0},
]


@dataclass
class World:
    """What stock mlx-lm says, made once."""

    model: nn.Module
    files: list[AdapterFiles]
    expected: dict[tuple[str, int], list[int]]  # (digest, prompt) -> greedy tokens


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("world")
    base = save_model(home / "base", "qwen3", num_hidden_layers=2)
    files, expected = [], {}
    models = {"base": open_model(base)}
    for number, options in enumerate(ADAPTERS, start=1):
        path = save_adapter(home / str(number), base, seed=number, strength=0.5, **options)
        files.append(read_adapter(path))
        models[files[-1].digest] = load_adapters(open_model(base), str(path))
    for digest, model in models.items():
        model.eval()
        for number, prompt in enumerate(PROMPTS):
            steps = generate_step(mx.array(prompt), model, max_tokens=LENGTH)
            expected[digest, number] = [int(token) for token, _ in steps]
    for number in range(len(PROMPTS)):  # a wrong adapter must show at once
        assert len({tuple(expected[digest, number][:2]) for digest in models}) == len(models)
    return World(open_model(base), files, expected)


@dataclass
class Row:
    lease: Lease
    prompt: int
    start: int  # tokens of the known answer that were there before
    tokens: list[int] = field(default_factory=list)


@dataclass
class Finished:
    """A row's prompt cache, in which its prompt and all its tokens are."""

    digest: str
    prompt: int
    done: int  # tokens of the answer
    cache: list[Any]


class Interleavings(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.bank = AdapterBank(self.world.model, slots=4, max_rank=8)
        self.generator = BatchGenerator(
            self.bank.wrapped,
            max_tokens=NEW_TOKENS,
            prefill_step_size=8,
            prefill_batch_size=2,
            completion_batch_size=4,
        )
        self.rows: dict[int, Row] = {}
        self.finished: list[Finished] = []
        self.versions: set[AdapterVersion] = set()

    def current(self, name: str | None) -> tuple[bool, AdapterVersion | None]:
        version = self.bank.find(name) if name else None
        return version is not None or name is None, version

    @rule(name=st.sampled_from([None, *NAMES]), prompt=st.integers(0, len(PROMPTS) - 1))
    def insert(self, name: str | None, prompt: int) -> None:
        resident, version = self.current(name)
        if resident:
            lease = self.bank.acquire(version)
            (uid,) = self.generator.insert([PROMPTS[prompt]], caches=[self.bank.make_cache(lease)])
            self.rows[uid] = Row(lease, prompt, 0)

    @precondition(lambda self: self.finished)
    @rule(name=st.sampled_from([None, *NAMES]), index=st.integers(0, 20))
    def reuse(self, name: str | None, index: int) -> None:
        """Go on from a finished row's prompt cache, under whatever the name means now."""
        resident, version = self.current(name)
        if not resident:
            return
        old = self.finished[index % len(self.finished)]
        lease = self.bank.acquire(version)
        if lease.digest != old.digest:
            with pytest.raises(AdapterIncompatible):
                self.bank.rebind(copy.deepcopy(old.cache), lease)
            lease.release()
            return
        cache = self.bank.rebind(copy.deepcopy(old.cache), lease)
        following = self.world.expected[old.digest, old.prompt][old.done]
        (uid,) = self.generator.insert([[following]], caches=[cache])
        self.rows[uid] = Row(lease, old.prompt, old.done + 1)

    @rule(name=st.sampled_from(NAMES), adapter=st.integers(0, len(ADAPTERS) - 1))
    def load(self, name: str, adapter: int) -> None:
        """Load, or replace what the name has."""
        before = self.bank.find(name)
        try:
            version = self.bank.load(self.world.files[adapter], name=name)
        except SlotsBusy:
            assert self.bank.find(name) is before
            assert all(entry["leases"] or entry["pinned"] for entry in self.bank.stats()["resident"])
        else:
            assert self.bank.find(name) is version
            self.versions.add(version)

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        if (version := self.bank.find(name)) is not None:
            self.bank.retire(version)
            assert self.bank.find(name) is None

    @rule(name=st.sampled_from(NAMES), pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        (self.bank.pin if pinned else self.bank.unpin)(name)

    @precondition(lambda self: self.rows)
    @rule(index=st.integers(0, 20))
    def cancel(self, index: int) -> None:
        uid = sorted(self.rows)[index % len(self.rows)]
        self.generator.remove([uid])
        self.rows.pop(uid).lease.release()

    @precondition(lambda self: self.rows)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            _, responses = self.generator.next()
            for response in responses:
                row = self.rows[response.uid]
                row.tokens.append(response.token)
                known = self.world.expected[row.lease.digest, row.prompt]
                assert row.tokens == known[row.start : row.start + len(row.tokens)]
                if response.finish_reason is not None:
                    done = row.start + len(row.tokens)
                    if done + 1 + NEW_TOKENS <= LENGTH:
                        self.finished.append(Finished(row.lease.digest, row.prompt, done, response.prompt_cache))
                    self.rows.pop(response.uid).lease.release()

    @invariant()
    def slots_are_accounted_for(self) -> None:
        resident = self.bank.stats()["resident"]
        slots = [entry["slot"] for entry in resident]
        assert len(set(slots)) == len(slots)
        assert all(1 <= slot < 4 for slot in slots)
        held = [row.lease for row in self.rows.values() if row.lease.version.slot]
        assert sum(entry["leases"] for entry in resident) == len(held)
        assert all(entry["leases"] for entry in resident if entry["retired"])
        free = set(range(4)) - set(slots)  # 0, the base, among them
        for layer in self.bank.store.banks.values():
            assert isinstance(layer, SlotBank)
            assert not any(part.view[slot].any() for slot in free for part in (layer._a, layer._b))

    def teardown(self) -> None:
        if self.rows:
            self.generator.remove(list(self.rows))
        for row in self.rows.values():
            row.lease.release()
        for version in self.versions:
            self.bank.retire(version)
        assert self.bank.stats()["used"] == 0
        assert not any(np.any(layer._b.view) for layer in self.bank.store.banks.values())
        self.generator.close()


def test_interleavings(world: World) -> None:
    class Machine(Interleavings):
        pass

    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

"""Any order of requests, cancellations, loads, replacements and unloads: every token under the version admitted.

The revealing base makes this visible: a version's rows produce its own token, with a log-probability that holds only
if every cached position was computed by that version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.errors import ModelNotFound, SlotsBusy
from mlx_router.lora.load import AdapterFiles, read_adapter
from mlx_router.specialist.core import Limits
from mlx_router.specialist.job import Delta, Event, Failed, Finished, Job, Started
from mlx_router.specialist.loading import Base
from tests.engine_driver import Driver, fresh
from tests.tiny_chat import reveal_token

NAMES = ("a", "b", "c")
VERSIONS = 10  # of each name
TOLERANCE = 1e-3
MakeDriver = Callable[..., Any]

add = st.tuples(
    st.just("add"),
    st.sampled_from([None, *NAMES]),
    st.sampled_from([1, 12, 17, 30, 40]),  # prompt tokens
    st.sampled_from([1, 3, 8, 20]),  # answer tokens
    st.sampled_from([1, 1, 3]),  # choices
)
op = st.one_of(
    add,
    add,
    add,
    st.tuples(st.just("step"), st.sampled_from([1, 2, 4, 20])),
    st.tuples(st.just("step"), st.sampled_from([1, 2, 4, 20])),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("load"), st.sampled_from(NAMES)),
    st.tuples(st.just("replace"), st.sampled_from(NAMES)),
    st.tuples(st.just("unload"), st.sampled_from(NAMES)),
    st.tuples(st.just("pin"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("deliver")),
    st.tuples(st.just("deliver")),
)
REACHED: Counter[str] = Counter()  # how often the examples came to the situations that matter


@dataclass
class World:
    """The engine, and what a client may expect of it."""

    driver: Any
    files: list[AdapterFiles]
    expected: dict[int | None, float]
    current: dict[str, int | None] = field(default_factory=dict)  # name -> version; None: unloaded
    versions: dict[str, int | None] = field(default_factory=dict)  # request -> version that its first job began with
    jobs: dict[str, Job] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    reading: list[tuple[str, int]] = field(default_factory=list)  # fetches under way, with what they will bring

    def number(self, name: str, version: int) -> int:
        return NAMES.index(name) * VERSIONS + version % VERSIONS

    def event(self, job_id: str, event: Event) -> None:
        assert job_id not in self.ended, "an event after the end"
        assert job_id not in self.cancelled, "an event after the cancellation"
        job = self.jobs[job_id]
        if isinstance(event, Started):
            current = self.current[job.adapter] if job.adapter is not None else None
            version = self.versions.setdefault(job.request, current)
            REACHED["kept their version"] += version != current
            digest = "base" if version is None else self.files[version].digest
            assert event.digest == digest, "neither the version that is current nor that of its request"
        elif isinstance(event, Delta):
            version = self.versions[job.request]
            for token in event.logprobs:
                assert token.raw == bytes([{None: ord("z")}.get(version, ord("A") + (version or 0))])
                assert abs(token.logprob - self.expected[version]) < TOLERANCE, "a state of another version"
        elif isinstance(event, Failed):
            self.ended.add(job_id)
            assert isinstance(event.error, ModelNotFound), event.error
            assert job.request not in self.versions, "a request that had begun was ended"
        elif isinstance(event, Finished):
            self.ended.add(job_id)
            assert event.reason == "length"
            assert event.completion_tokens == job.max_tokens


@pytest.fixture(scope="module")
def expected(revealing_base: Base, revealing_path: Path) -> dict[int | None, float]:
    """The log-probability of a version's token when nothing else runs."""
    found: dict[int | None, float] = {}
    for version, name in ((None, None), (0, "v0")):
        driver = Driver(fresh(revealing_base), revealing_path.parent)
        driver.add("only", name, logprobs=0, max_tokens=3)
        driver.drain()
        deltas = [event for event in driver.of("only") if isinstance(event, Delta)]
        assert {token.raw[0] for delta in deltas for token in delta.logprobs} == {
            ord("z") if version is None else ord("A")
        }
        found[version] = deltas[0].logprobs[0].logprob
    return {None: found[None], **dict.fromkeys(range(len(NAMES) * VERSIONS), found[0])}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(ops=st.lists(op, min_size=20, max_size=80), slots=st.sampled_from([1, 2, 4]))
def test_interleavings(
    ops: list[Any],
    slots: int,
    make_driver: MakeDriver,
    revealing_base: Base,
    revealing_path: Path,
    expected: dict[int | None, float],
) -> None:
    root = revealing_path.parent
    files = [read_adapter(root / f"v{number}") for number in range(len(NAMES) * VERSIONS)]
    limits = Limits(max_rows=6, prefill_rows=3, prefill_step=16, prompt_cache_bytes=2**20)
    driver = make_driver(revealing_base, root, slots=slots, limits=limits)
    world = World(driver, files, expected)
    world.current = {name: world.number(name, 0) for name in NAMES}
    driver.events = _Recorder(world)
    core = driver.core
    core.residents._fetch = lambda name: world.reading.append((name, world.current[name]))
    for name in NAMES[: slots // 2]:
        core.residents.install(name, files[world.current[name] or 0], replace=False)
    for index, operation in enumerate(ops):
        _apply(world, core, index, operation)
        assert len(core._batch) == len(core._rows), "the batch computes rows that nobody waits for"
    while core.busy:
        while world.reading:
            _deliver(world, core)
        core.step()
    assert world.ended | world.cancelled == set(world.jobs)
    for name in NAMES:
        core.residents.pin(name, False)
        core.residents.unload(name)
    stats = core.bank.stats()
    assert stats["used"] == 0, "a slot leaked"
    assert stats["resident"] == []
    REACHED.update(
        cached=core.prompt_cache.hits,
        evicted=core.bank.evictions,
        cancelled=len(world.cancelled),
        finished=core.counters.finished,
    )
    assert core.prompt_cache.digests() <= {"base"} | {item.digest for item in files}


class _Recorder(list[Any]):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def append(self, item: tuple[str, Event]) -> None:
        self._world.event(*item)


def _deliver(world: World, core: Any) -> None:
    name, version = world.reading.pop(0)
    core.residents.arrived(name, world.files[version])


def _apply(world: World, core: Any, index: int, operation: Any) -> None:
    kind, *rest = operation
    if kind == "add":
        name, length, count, choices = rest
        if name is not None and world.current[name] is None:
            return  # the catalog answers 404
        prompt = tuple((7 * position) % 200 for position in range(length))  # prompts share their beginnings
        for choice in range(choices):
            fields = {"prompt": prompt, "max_tokens": count, "logprobs": 0, "text_state": "raw"}
            job_id = f"job{index}-{choice}"
            world.jobs[job_id] = world.driver.add(job_id, name, request=f"job{index}", **fields)
    elif kind == "step":
        for _ in range(rest[0]):
            core.step()
    elif kind == "cancel":
        names = sorted(set(world.jobs) - world.ended - world.cancelled)
        if names:
            chosen = names[rest[0] % len(names)]
            world.cancelled.add(chosen)
            core.cancel(chosen)
    elif kind == "unload":
        world.current[rest[0]] = None
        core.residents.unload(rest[0])
    elif kind in ("load", "replace"):
        name = rest[0]
        before = world.current[name]
        resident = core.bank.find(name)
        if kind == "load" and resident is not None:
            return
        number = world.number(name, 0 if before is None else before + 1)
        try:
            core.residents.install(name, world.files[number], replace=True)
        except SlotsBusy:
            assert core.bank.find(name) is resident, "a failed swap changed something"
            REACHED["refused"] += 1
        else:
            leases = [entry["leases"] for entry in core.bank.stats()["resident"] if entry["retired"]]
            REACHED["replaced while running"] += bool(resident is not None and leases)
            world.current[name] = number
    elif kind == "pin":
        room = world.driver.slots > 1  # one pinned at most, so that the others find a slot
        core.residents.pin(rest[0], rest[1] and rest[0] == "a" and room)
    elif kind == "deliver" and world.reading:
        name, version = world.reading[0]
        REACHED["read in vain"] += world.current[name] != version
        _deliver(world, core)


def test_the_examples_reach_what_matters() -> None:
    """A property that is never put to the test holds always."""
    names = ("cached", "evicted", "cancelled", "finished", "kept their version")
    rare = {name: REACHED[name] for name in names if REACHED[name] < 3}
    assert not rare


def test_a_shuffled_bank_is_seen(
    make_driver: MakeDriver, revealing_base: Base, revealing_path: Path, expected: dict[int | None, float]
) -> None:
    """The construction can fail: two rows whose bindings are exchanged mid-way give themselves away."""
    driver = make_driver(revealing_base, revealing_path.parent)
    driver.add("x", "v1", logprobs=0, max_tokens=8, text_state="raw")
    driver.add("y", "v2", logprobs=0, max_tokens=8, text_state="raw")
    for _ in range(4):
        driver.core.step()
    binding = driver.core._batch._generator._generation_batch.prompt_cache[-1]
    binding._set(binding.rows[::-1])
    driver.drain()
    for job_id, version in (("x", 1), ("y", 2)):
        tokens = [token for event in driver.of(job_id) if isinstance(event, Delta) for token in event.logprobs]
        assert tokens[0].raw[0] == reveal_token_byte(version)
        assert any(abs(token.logprob - expected[version]) > TOLERANCE for token in tokens)


def reveal_token_byte(version: int) -> int:
    assert reveal_token(version) is not None
    return ord("A") + version

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlx_router.specialist.job import Job
from mlx_router.specialist.scheduler import Pace, WaitingJobs


def job(name: str, adapter: str | None = None, tokens: int = 1) -> Job:
    return Job(id=name, adapter=adapter, prompt=(1,) * tokens, max_tokens=1, deadline_s=0.0)


def waiting(*jobs: Job) -> WaitingJobs:
    queue = WaitingJobs(long_tokens=10, long_places=1)
    for item in jobs:
        queue.add(item)
    return queue


def order(queue: WaitingJobs, long_running: int = 0) -> list[str]:
    taken = []
    while (item := queue.next(long_running=long_running, usable=lambda _: True)) is not None:
        taken.append(item.id)
    return taken


def test_adapters_take_turns_and_jobs_keep_their_order() -> None:
    queue = waiting(*(job(f"a{n}", "a") for n in range(3)), job("b0", "b"), job("n0"), job("b1", "b"))
    assert order(queue) == ["a0", "b0", "n0", "a1", "b1", "a2"]
    assert len(queue) == 0


def test_short_prompts_pass_long_ones() -> None:
    queue = waiting(job("long", "a", 100), job("short", "a", 5), job("long2", "b", 100))
    assert order(queue, long_running=1) == ["short"]
    assert order(queue, long_running=0) == ["long2", "long"]  # "a" has had its turn


def test_unusable_adapters_wait() -> None:
    queue = waiting(job("a0", "a"), job("n0"))
    taken = queue.next(long_running=0, usable=lambda adapter: adapter is None)
    assert taken is not None
    assert taken.id == "n0"
    assert queue.next(long_running=0, usable=lambda adapter: adapter is None) is None
    assert [item.id for item in queue] == ["a0"]


def test_removal() -> None:
    queue = waiting(job("a0", "a"), job("a1", "a"), job("b0", "b"))
    assert queue.remove("a0") is not None
    assert queue.remove("a0") is None
    assert [item.id for item in queue.take_all(lambda item: item.adapter == "a")] == ["a1"]
    assert queue.adapters() == ["b"]
    assert not queue.wanted("a")
    assert queue.wanted("b")


def test_bound_jobs_need_no_usable_adapter() -> None:
    bound = {"a1"}
    queue = WaitingJobs(long_tokens=10, long_places=1, bound=bound)
    for item in (job("a0", "a"), job("a1", "a"), job("b0", "b")):
        queue.add(item)
    assert queue.startable(lambda adapter: False)
    taken = queue.next(long_running=0, usable=lambda adapter: False)
    assert taken is not None
    assert taken.id == "a1"
    assert not queue.startable(lambda adapter: False)
    assert queue.next(long_running=0, usable=lambda adapter: False) is None
    bound.add("a0")
    assert queue.take_unbound("a") == []
    assert not queue.wanted("a")
    assert [item.id for item in queue.take_unbound("b")] == ["b0"]


def test_choices_follow_the_one_that_computes_their_prompt() -> None:
    leader, *others = (replace(job(name, "a", tokens=4), request="r") for name in ("r0", "r1", "r2"))
    other_prompt = replace(job("r3", "a", tokens=5), request="r")
    alone = job("x", "a", tokens=4)
    queue = waiting(*others, other_prompt, alone)
    taken = [queue.next(long_running=0, usable=lambda _: True, leading=[leader]) for _ in range(3)]
    assert taken == [other_prompt, alone, None]
    assert order(queue) == ["r1", "r2"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), max_size=30))
def test_nothing_is_lost_and_nobody_starves(entries: list[tuple[str, int]]) -> None:
    queue = waiting(*(job(f"{adapter}{n}", adapter, tokens) for n, (adapter, tokens) in enumerate(entries)))
    taken = order(queue)
    assert sorted(taken) == sorted(f"{adapter}{n}" for n, (adapter, _) in enumerate(entries))
    left = {adapter: sum(name == adapter for name, _ in entries) for adapter in "abc"}
    served = dict.fromkeys("abc", 0)
    for name in taken:  # while two adapters wait, neither gets two more turns than the other
        served[name[0]] += 1
        for other in "abc":
            if served[other] < left[other]:
                assert served[name[0]] - served[other] <= 1


def test_each_chunk_is_paid_for_in_decode_time() -> None:
    pace = Pace(share=0.5, max_steps=10)
    assert not pace.decode_only(decoding=4, prefilling=1)
    pace.spent(1.0, prefill=True)
    steps = 0
    while pace.decode_only(decoding=4, prefilling=1):
        pace.spent(0.125, prefill=False)
        steps += 1
    assert steps == 4
    pace.spent(100.0, prefill=True)
    steps = 0
    while pace.decode_only(decoding=4, prefilling=1):
        pace.spent(0.1, prefill=False)
        steps += 1
    assert steps == 10  # prompts advance as well
    pace.spent(1.0, prefill=True)
    assert not pace.decode_only(decoding=0, prefilling=1)
    assert not pace.decode_only(decoding=1, prefilling=0)

"""The engine core, step by step: sampling, limits, fairness, caches, slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_router.errors import AdapterExists, ModelNotFound, SlotsBusy
from mlx_router.lora.load import read_adapter
from mlx_router.specialist.core import Limits
from mlx_router.specialist.job import Delta, Failed, Sampling
from mlx_router.specialist.loading import Base, load_base
from tests import tiny_chat
from tests.engine_driver import Driver, fresh
from tests.tiny_models import save_model

WEATHER: tuple[Any, ...] = ({"type": "function", "function": {"name": "get_weather", "parameters": {}}},)


@pytest.fixture(scope="module", params=["qwen3", "qwen3_5_moe"])
def random_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose every token depends on all before it; the second has recurrent states."""
    path = tmp_path_factory.mktemp(request.param) / "base"
    save_model(path, request.param, vocab_size=tiny_chat.HIDDEN)
    return load_base(str(tiny_chat.save_tokenizer(path)), path, max_context=2048)


def sampled(driver: Driver, job_id: str) -> list[bytes]:
    return [token.raw for event in driver.of(job_id) if isinstance(event, Delta) for token in event.logprobs]


def test_a_mixed_batch(driver: Driver) -> None:
    driver.add("base")
    driver.add("caller", "caller", tools=WEATHER)
    driver.add("thinker", "thinker")
    driver.add("endless", "endless", max_tokens=9)
    driver.drain()
    assert driver.text("base") == tiny_chat.ANSWER
    assert driver.reason("caller") == "tool_calls"
    assert (driver.reasoning("thinker"), driver.text("thinker")) == (" mmh", "ok")
    assert driver.reason("endless") == "length"
    assert driver.started("base").digest == "base"
    assert driver.started("thinker").digest == read_adapter(driver.adapters / "thinker").digest


def test_long_prompts_do_not_hold_up_short_ones(driver: Driver) -> None:
    """Prompts of many chunks are on their way; a short one that comes later answers first."""
    for index in range(12):
        driver.add(f"long{index}", prompt=(7,) * 700, max_tokens=2)
    driver.core.step()
    driver.add("short", prompt=driver.prompt()[-12:])
    for _ in range(25):
        driver.core.step()
    assert driver.reason("short") == "stop"
    assert not any(driver.events_end(f"long{index}") for index in range(12))
    driver.drain()


def test_running_answers_go_on_while_prompts_are_read(driver: Driver) -> None:
    """Decode steps are not fewer than prefill chunks, and every chunk is followed by time for decoding."""
    driver.add("answer", "endless", max_tokens=1900)
    for _ in range(4):
        driver.core.step()
    before = len(driver.of("answer"))
    driver.add("prompt", prompt=(7,) * 320, max_tokens=1)
    steps = 0
    while not driver.events_end("prompt"):
        driver.core.step()
        steps += 1
    assert len(driver.of("answer")) - before >= steps - 2
    assert steps >= 2 * 320 // 16 - 2  # more steps than chunks: some were for the running answer alone


def test_adapters_take_turns(driver: Driver) -> None:
    """A burst for one adapter does not delay a request for another."""
    driver.core._limits = Limits(max_rows=1, prefill_step=16)
    for index in range(6):
        driver.add(f"burst{index}", "endless", max_tokens=3)
    driver.add("other", "thinker")
    driver.drain()
    order = [job_id for job_id, event in driver.events if event is driver.started(job_id)]
    assert order.index("other") <= 1


def test_the_same_answer_from_the_cache(random_base: Base) -> None:
    """Conversations grow; states that are kept change nothing, and at least one token is always computed."""
    turns = ["what is this", "and that?", "and now for something else entirely, at some length"]
    limits = Limits(prefill_step=16, prompt_cache_bytes=2**26)
    cached = Driver(fresh(random_base), Path(), limits=limits)
    plain = Driver(fresh(random_base), Path(), limits=Limits(prefill_step=16, prompt_cache_bytes=0))
    messages: list[Any] = []
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        render = random_base.tokenizer.apply_chat_template
        prompt = tuple(render(messages, add_generation_prompt=True))
        history = tuple(render(messages, add_generation_prompt=False))
        for driver in (cached, plain):
            for again in range(2):
                driver.add(
                    f"{number}{again}",
                    prompt=prompt,
                    max_tokens=8,
                    logprobs=1,
                    text_state="raw",
                    boundaries=() if random_base.states_can_be_cut else (len(history),),
                )
                driver.drain()
        for again in range(2):
            name = f"{number}{again}"
            assert sampled(cached, name) == sampled(plain, name)
            assert plain.started(name).cached_tokens == 0
        if number:
            assert cached.started(f"{number}0").cached_tokens > 8
        assert 8 < cached.started(f"{number}1").cached_tokens <= len(prompt) - 1
        messages.append({"role": "assistant", "content": "so it is"})


def test_rows_are_independent(random_base: Base) -> None:
    """Seeds, penalties and biases of a row give the same tokens alone and in company."""
    samplings = {
        "greedy": Sampling(),
        "seeded": Sampling(temperature=1.0, seed=3),
        "nucleus": Sampling(temperature=0.9, top_p=0.8, min_p=0.02, top_k=40, seed=4),
        "repeat": Sampling(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3),
        "biased": Sampling(logit_bias=((65, 100.0),)),
        "other": Sampling(temperature=1.0, seed=5),
    }
    prompt = tuple(range(30, 55))

    def run(names: list[str], company: int) -> dict[str, list[bytes]]:
        driver = Driver(fresh(random_base), Path(), limits=Limits(prompt_cache_bytes=0))
        for index in range(company):
            driver.add(f"noise{index}", prompt=tuple(range(index + 3)), sampling=Sampling(temperature=1.5))
        for name in names:
            driver.add(name, prompt=prompt, sampling=samplings[name], logprobs=0, max_tokens=12, text_state="raw")
        driver.drain()
        return {name: sampled(driver, name) for name in names}

    alone = {name: run([name], 0)[name] for name in samplings}
    together = run(list(samplings), 3)
    assert together == alone
    assert alone["biased"] == [tiny_chat.tokenizer().id_to_token(65).encode()] * 12
    assert alone["seeded"] != alone["other"]
    assert len(set(alone["repeat"])) > len(set(alone["greedy"])) or alone["repeat"] != alone["greedy"]


def test_top_logprobs(random_base: Base) -> None:
    driver = Driver(fresh(random_base), Path())
    driver.add("a", prompt=tuple(range(30, 40)), logprobs=20, max_tokens=4, text_state="raw")
    driver.drain()
    tokens = [token for event in driver.of("a") if isinstance(event, Delta) for token in event.logprobs]
    for token in tokens:
        values = [value for _, _, value in token.top]
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0]
        assert np.exp(values).sum() <= 1.0001


def test_install_replace_and_purge(revealing: Driver) -> None:
    root = revealing.adapters
    residents = revealing.core.residents
    residents.install("x", read_adapter(root / "v1"), replace=False)
    with pytest.raises(AdapterExists):
        residents.install("x", read_adapter(root / "v2"), replace=False)
    prompt = tuple(range(40))
    revealing.add("one", "x", prompt=prompt, max_tokens=3)
    revealing.drain()
    old = revealing.started("one").digest
    assert revealing.core.prompt_cache.digests() == {old}
    revealing.add("running", "x", prompt=prompt, max_tokens=30, text_state="raw")
    for _ in range(6):
        revealing.core.step()
    done = residents.install("x", read_adapter(root / "v2"), replace=True)
    assert done.previous == old
    assert revealing.core.prompt_cache.digests() == set()
    revealing.add("two", "x", prompt=prompt, max_tokens=3, text_state="raw")
    revealing.drain()
    assert revealing.text("running") == "B" * 30
    assert revealing.text("two") == "CCC"
    assert revealing.started("two").cached_tokens == 0
    assert revealing.core.prompt_cache.digests() == {done.digest}  # the old version's last row left nothing
    assert revealing.bank.stats()["used"] == 1


def test_a_swap_without_a_slot_changes_nothing(
    make_driver: Callable[..., Driver], revealing_base: Base, revealing_path: Path
) -> None:
    driver = make_driver(revealing_base, revealing_path.parent, slots=1)
    driver.add("running", "v1", max_tokens=30, text_state="raw")
    for _ in range(4):
        driver.core.step()
    with pytest.raises(SlotsBusy):
        driver.core.residents.install("v1", read_adapter(driver.adapters / "v2"), replace=True)
    driver.add("after", "v1", max_tokens=3, text_state="raw")
    driver.drain()
    assert driver.text("after") == "BBB"


def test_a_new_adapter_gets_a_slot_under_constant_load(
    make_driver: Callable[..., Driver], revealing_base: Base, revealing_path: Path
) -> None:
    """Both slots are always in use by a stream of requests; a third adapter's turn still comes."""
    driver = make_driver(revealing_base, revealing_path.parent, slots=2)
    driver.add("wants", "v3", max_tokens=2, text_state="raw")
    started = 0
    driver.add("a0", "v1", max_tokens=9, text_state="raw")
    driver.add("b0", "v2", max_tokens=9, text_state="raw")
    while not driver.events_end("wants"):
        started += 1
        assert started < 200
        driver.add(f"a{started}", "v1", max_tokens=9, text_state="raw")
        driver.add(f"b{started}", "v2", max_tokens=9, text_state="raw")
        driver.core.step()
    assert driver.text("wants") == "DD"
    driver.drain(5000)


def test_all_slots_pinned_is_a_clear_refusal(
    make_driver: Callable[..., Driver], revealing_base: Base, revealing_path: Path
) -> None:
    driver = make_driver(revealing_base, revealing_path.parent, slots=1)
    driver.core.residents.install("v1", read_adapter(driver.adapters / "v1"), replace=False)
    driver.core.residents.pin("v1", True)
    driver.add("wants", "v2")
    driver.drain()
    end = driver.end("wants")
    assert isinstance(end, Failed)
    assert isinstance(end.error, SlotsBusy)


def test_files_that_were_read_too_early_are_read_again(revealing: Driver) -> None:
    """An adapter is replaced and unloaded from its slot while its old files are being read."""
    reading: list[str] = []
    residents = revealing.core.residents
    residents._fetch = reading.append
    revealing.add("job", "x", max_tokens=2, text_state="raw")
    revealing.core.step()
    assert reading == ["x"]
    residents.install("x", read_adapter(revealing.adapters / "v2"), replace=True)
    version = revealing.bank.find("x")
    assert version is not None
    revealing.bank.retire(version)  # evicted
    residents.arrived("x", read_adapter(revealing.adapters / "v1"))
    revealing.core.step()
    assert reading == ["x", "x"]
    residents.arrived("x", read_adapter(revealing.adapters / "v2"))
    revealing.drain()
    assert revealing.text("job") == "CC"


def test_unload_ends_what_waits_and_not_what_runs(revealing: Driver) -> None:
    revealing.core._limits = Limits(max_rows=1, prefill_step=16)
    revealing.add("runs", "v1", max_tokens=6, text_state="raw")
    revealing.core.step()
    revealing.add("waits", "v1")
    revealing.core.residents.unload("v1")
    revealing.drain()
    assert revealing.text("runs") == "BBBBBB"
    end = revealing.end("waits")
    assert isinstance(end, Failed)
    assert isinstance(end.error, ModelNotFound)
    assert revealing.bank.stats()["used"] == 0


@pytest.fixture
def siblings(revealing: Driver) -> Driver:
    """The first of a request's three jobs runs, the others wait."""
    revealing.core._limits = Limits(max_rows=1, prefill_step=16)
    for index in range(3):
        revealing.add(f"r{index}", "v1", request="r", max_tokens=4, text_state="raw")
    revealing.core.step()
    assert [name for name, _ in revealing.events] == ["r0"]
    return revealing


def leases(driver: Driver) -> int:
    return sum(entry["leases"] for entry in driver.bank.stats()["resident"])


def test_choices_of_one_request_are_of_one_version(siblings: Driver) -> None:
    """Whatever happens to the adapter after the first has begun: replaced, unloaded, held for another."""
    driver = siblings
    driver.add("other", "v1", max_tokens=2, text_state="raw")
    driver.core.residents.install("v1", read_adapter(driver.adapters / "v2"), replace=True)
    driver.core.residents.unload("v1")
    driver.drain()
    assert [driver.text(f"r{index}") for index in range(3)] == ["BBBB"] * 3
    end = driver.end("other")
    assert isinstance(end, Failed)
    assert isinstance(end.error, ModelNotFound)
    assert driver.bank.stats()["used"] == 0


def test_choices_of_an_adapter_that_is_held_go_on(
    make_driver: Callable[..., Driver], revealing_base: Base, revealing_path: Path
) -> None:
    limits = Limits(max_rows=1, prefill_step=16)
    driver = make_driver(revealing_base, revealing_path.parent, slots=1, limits=limits)
    for index in range(3):
        driver.add(f"r{index}", "v1", request="r", max_tokens=4, text_state="raw")
    driver.core.step()
    driver.add("wants", "v2", max_tokens=2, text_state="raw")
    driver.add("later", "v1", max_tokens=2, text_state="raw")
    driver.drain()
    assert [driver.text(f"r{index}") for index in range(3)] == ["BBBB"] * 3
    assert driver.text("wants") == "CC"
    order = [name for name, event in driver.events if event is driver.started(name)]
    assert order == ["r0", "r1", "r2", "wants", "later"]


def test_the_leases_of_waiting_choices_come_back(siblings: Driver) -> None:
    driver = siblings
    assert leases(driver) == 3
    driver.core.cancel("r1")
    assert leases(driver) == 2
    driver.now += 100
    driver.drain()
    assert isinstance(driver.end("r2"), Failed)
    assert leases(driver) == 0


def test_the_leases_of_waiting_choices_end_with_the_engine(siblings: Driver) -> None:
    siblings.core.fail_all(SlotsBusy("over"))
    assert leases(siblings) == 0
    assert not siblings.core.busy


def add_choices(driver: Driver, count: int, prompt: tuple[int, ...], sampling: Sampling, **fields: Any) -> list[str]:
    """The jobs of one request; seeds as the server gives them."""
    seeds = [None if sampling.seed is None else sampling.seed + index for index in range(count)]
    for index, seed in enumerate(seeds):
        own = replace(sampling, seed=seed)
        shared = {"request": "r", "prompt": prompt, "logprobs": 0, "max_tokens": 6, "text_state": "raw"} | fields
        driver.add(f"r{index}", sampling=own, **shared)
    return [f"r{index}" for index in range(count)]


def computed(driver: Driver) -> int:
    counters = driver.core.snapshot().counters
    return counters.prompt_tokens - counters.cached_tokens


PROMPT = tuple(range(30, 85))  # four chunks


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("rows", [32, 2])
def test_choices_share_one_prompt(random_base: Base, sampling: Sampling, rows: int) -> None:
    """Its tokens are computed once, and the last one for each choice; the answers are those of choices alone."""
    alone = []
    for index in range(5):
        driver = Driver(fresh(random_base), Path())
        own = replace(sampling, seed=sampling.seed + index) if sampling.seed is not None else sampling
        add_choices(driver, 1, PROMPT, own)
        driver.drain()
        alone.append(sampled(driver, "r0"))
    limits = Limits(max_rows=rows, prefill_step=16, prompt_cache_bytes=2**26)
    driver = Driver(fresh(random_base), Path(), limits=limits)
    names = add_choices(driver, 5, PROMPT, sampling)
    driver.drain()
    assert [sampled(driver, name) for name in names] == alone
    assert computed(driver) == len(PROMPT) + 4


def test_choices_begin_with_the_last_token_of_their_prompt(random_base: Base) -> None:
    """The first one does not answer ahead of the others; where the prompt is known they begin at once."""
    driver = Driver(fresh(random_base), Path())
    for steps in (5, 1):
        driver.events.clear()
        names = add_choices(driver, 3, PROMPT, Sampling())
        for _ in range(steps - 1):
            driver.core.step()
            assert [name for name, _ in driver.events] == ["r0"]
        driver.core.step()
        assert [name for name, _ in driver.events] == names
        driver.drain()


def test_choices_do_not_wait_for_what_will_not_be_kept(random_base: Base) -> None:
    driver = Driver(fresh(random_base), Path(), limits=Limits(prefill_step=16, prompt_cache_bytes=0))
    names = add_choices(driver, 3, PROMPT, Sampling())
    driver.core.step()
    assert [name for name, _ in driver.events] == names
    driver.drain()
    assert len({tuple(sampled(driver, name)) for name in names}) == 1


def test_other_requests_pass_choices_that_wait(random_base: Base) -> None:
    driver = Driver(fresh(random_base), Path())
    add_choices(driver, 3, PROMPT, Sampling())
    driver.add("other", prompt=PROMPT[1:], request="other")
    driver.core.step()
    assert [name for name, _ in driver.events] == ["r0", "other"]
    driver.drain()


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_the_first_choice_is_cancelled(random_base: Base, steps: int) -> None:
    """Whether its prompt is half computed, or kept already, or it answers."""
    driver = Driver(fresh(random_base), Path())
    names = add_choices(driver, 4, PROMPT, Sampling())
    for _ in range(steps):
        driver.core.step()
    driver.core.cancel("r0")
    driver.drain()
    assert [driver.reason(name) for name in names[1:]] == ["length"] * 3
    assert len({tuple(sampled(driver, name)) for name in names[1:]}) == 1
    assert computed(driver) <= 2 * len(PROMPT) + 2
    assert len(driver.core._batch) == 0


def test_the_whole_request_is_cancelled(revealing: Driver) -> None:
    driver = revealing
    names = add_choices(driver, 4, PROMPT, Sampling(), adapter="v1")
    driver.core.step()
    assert leases(driver) == 4
    for name in names:
        driver.core.cancel(name)
    assert leases(driver) == 0
    assert not driver.core.busy
    assert len(driver.core._batch) == len(driver.core.prompt_cache) == 0
    assert driver.core.snapshot().state_bytes == 0


@pytest.mark.parametrize("steps", range(1, 7))
def test_choices_that_wait_for_a_prompt_keep_their_version(revealing: Driver, steps: int) -> None:
    """The adapter is replaced and unloaded while the first choice computes the prompt of all, or just after."""
    driver = revealing
    names = add_choices(driver, 4, PROMPT, Sampling(), adapter="v1")
    for _ in range(steps):
        driver.core.step()
    driver.core.residents.install("v1", read_adapter(driver.adapters / "v2"), replace=True)
    driver.core.residents.unload("v1")
    driver.drain()
    assert [driver.text(name) for name in names] == ["BBBBBB"] * 4
    assert len(driver.core.prompt_cache) == 0
    assert driver.bank.stats()["used"] == 0


def test_cancel_within_one_step(driver: Driver) -> None:
    driver.add("runs", "endless", max_tokens=1000)
    driver.add("stays", "endless", max_tokens=20)
    for _ in range(5):
        driver.core.step()
    driver.core.cancel("runs")
    seen = len(driver.of("runs"))
    assert len(driver.core._batch) == 1
    driver.drain()
    assert len(driver.of("runs")) == seen
    assert driver.text("stays") == "loopfirst" * 10
    assert driver.core.snapshot().counters.cancelled == 1

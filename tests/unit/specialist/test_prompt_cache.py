from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlx_router.specialist.prompt_cache import PromptCache


class Ops:
    """States are lists of tokens; the first entry says whether they can be cut."""

    def nbytes(self, state: Any) -> int:
        return len(state)

    def can_trim(self, state: Any) -> bool:
        return bool(state[0])

    def copy(self, state: Any) -> Any:
        return list(state)

    def trim(self, state: Any, count: int) -> None:
        assert state[0]
        del state[len(state) - count :]


def cache(budget: int = 1000, min_tokens: int = 2) -> PromptCache:
    return PromptCache(Ops(), budget_bytes=budget, min_tokens=min_tokens)


def state(tokens: list[int], trimmable: bool = True) -> list[Any]:
    return [trimmable, *tokens]


def test_one_token_is_always_left() -> None:
    store = cache()
    store.store("d", [1, 2, 3, 4], state([1, 2, 3, 4]))
    assert store.fetch("d", [1, 2, 3, 4]) == ([True, 1, 2, 3], 3)
    assert store.fetch("d", [1, 2, 3, 4, 5]) == ([True, 1, 2, 3, 4], 4)
    assert store.fetch("d", [1, 2, 9]) == ([True, 1, 2], 2)
    assert store.fetch("d", [1, 9]) is None
    assert store.fetch("other", [1, 2, 3, 4]) is None
    assert (store.hits, store.misses) == (3, 2)


def test_states_that_cannot_be_cut_serve_exact_prefixes_only() -> None:
    store = cache()
    for tokens in ([1, 2], [1, 2, 3, 4]):
        store.store("d", tokens, state(tokens, trimmable=False))
    assert len(store) == 2  # the longer one does not stand for the shorter
    assert store.fetch("d", [1, 2, 3, 4]) == ([False, 1, 2], 2)
    assert store.fetch("d", [1, 2, 3, 4, 5]) == ([False, 1, 2, 3, 4], 4)
    assert store.fetch("d", [1, 2, 3, 9]) == ([False, 1, 2], 2)


def test_a_longer_state_stands_for_its_prefixes() -> None:
    store = cache()
    store.store("d", [1, 2], state([1, 2]))
    store.store("d", [1, 2, 3], state([1, 2, 3]))
    assert len(store) == 1
    assert not store.wants("d", [1, 2, 3])
    assert store.wants("d", [1, 2, 3, 4])
    assert not store.wants("d", [1])


def test_least_recently_used_goes_first() -> None:
    store = cache(budget=12)
    for start in (10, 20, 30):
        store.store("d", [start, 1, 2], state([start, 1, 2]))
    assert store.fetch("d", [10, 1, 2, 3]) is not None
    store.store("d", [40, 1, 2], state([40, 1, 2]))
    assert store.fetch("d", [20, 1, 2, 3]) is None
    assert store.fetch("d", [10, 1, 2, 3]) is not None
    assert store.nbytes == 12
    store.store("d", [9] * 20, state([9] * 20))  # never fits
    assert len(store) == 3
    store.shrink(5)
    assert len(store) == 1


def test_purge() -> None:
    store = cache()
    store.store("a", [1, 2], state([1, 2]))
    store.store("b", [1, 2], state([1, 2]))
    assert store.purge("a") == 1
    assert store.digests() == {"b"}
    assert store.nbytes == 3


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans()),
        max_size=20,
    ),
    st.sampled_from("ab"),
    st.lists(st.integers(0, 2), min_size=1, max_size=7),
    st.integers(5, 60),
)
def test_what_comes_back_is_a_true_prefix(
    entries: list[tuple[str, list[int], bool]], digest: str, prompt: list[int], budget: int
) -> None:
    store = cache(budget=budget, min_tokens=1)
    for owner, tokens, trimmable in entries:
        store.store(owner, tokens, [trimmable, *((owner, token) for token in tokens)])
        assert store.nbytes == sum(entry.nbytes for entry in store._entries.values()) <= budget
    found = store.fetch(digest, prompt)
    if found is not None:
        got, used = found
        assert 1 <= used <= len(prompt) - 1
        assert got[1:] == [(digest, token) for token in prompt[:used]]

"""Many prompts at once, as the gateway's thread and `route --jsonl` ask."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlx_router.head.router import Router

META: Any = SimpleNamespace(
    thresholds={"sql": 0.5, "rust": 0.5}, out_of_domain=0.0, evidence=None, fallback="general", fallback_share=1.0
)


class Counting:
    """A classifier that knows one word and writes down what it is asked."""

    labels = ("sql", "rust")

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def classify(self, prompts: Sequence[str]) -> Any:
        self.asked.append(list(prompts))
        rows = np.array([[0.9, 0.1] if "sql" in prompt else [0.1, 0.9] for prompt in prompts])
        return SimpleNamespace(probabilities=rows, evidence=np.ones(len(prompts)))


def test_equal_prompts_are_classified_once_and_in_order() -> None:
    classifier: Any = Counting()
    router = Router(classifier, META, "v0001")
    found = router.route_many(["sql", "rust", "sql"])
    assert [decision.domain for decision in found] == ["sql", "rust", "sql"]
    assert router.route("sql").domain == "sql"
    assert router.route_many([]) == []
    assert classifier.asked == [["sql", "rust"]]


def test_the_prompt_used_longest_ago_is_forgotten_first() -> None:
    classifier: Any = Counting()
    router = Router(classifier, META, "v0001")
    router.cache_entries = 2
    for prompt in ("a", "b", "a", "c", "a", "b"):
        router.route(prompt)
    assert classifier.asked == [["a"], ["b"], ["c"], ["b"]]


def test_a_caller_with_its_own_cache_can_do_without() -> None:
    classifier: Any = Counting()
    router = Router(classifier, META, "v0001")
    router.cache_entries = 0
    assert [router.route("sql").domain for _ in range(2)] == ["sql", "sql"]
    assert classifier.asked == [["sql"], ["sql"]]

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.head.decision import Thresholds, decide

LABELS = ["a", "b", "c", "d", "e", "f"]


def _decide(scores: dict[str, float], **thresholds: float) -> tuple[str, str, list[str]]:
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    decision = decide(ranked, Thresholds(per_label=thresholds, out_of_domain=0.1, fallback="general"))
    return decision.domain, decision.reason, [selection.domain for selection in decision.selections]


def test_best_label_at_its_threshold_wins() -> None:
    assert _decide({"a": 0.6, "b": 0.3}, a=0.6, b=0.5) == ("a", "classified", ["a"])


def test_below_its_threshold_goes_to_the_fallback() -> None:
    assert _decide({"a": 0.59, "b": 0.3}, a=0.6, b=0.2) == ("general", "below_threshold", [])


def test_nothing_near_is_out_of_domain() -> None:
    assert _decide({"a": 0.09, "b": 0.01}, a=0.5, b=0.5) == ("general", "out_of_domain", [])


def test_a_sure_label_without_evidence_is_out_of_domain() -> None:
    """A label may hold nearly the whole of nearly nothing."""
    thresholds = Thresholds(per_label={"a": 0.5}, out_of_domain=0.1, evidence=2.0)
    scores = [("a", 0.99), ("b", 0.01)]
    known, strange = (decide(scores, thresholds, evidence=value) for value in (2.0, 1.9))
    assert (known.domain, known.reason) == ("a", "classified")
    assert (strange.domain, strange.reason, strange.selections) == ("general", "out_of_domain", ())


@pytest.mark.parametrize(("rival", "reason"), [(0.29, "classified"), (0.31, "below_threshold")])
def test_the_fallback_wins_at_its_share_of_the_best(rival: float, reason: str) -> None:
    thresholds = Thresholds(per_label={"a": 0.3, "general": 0.3}, out_of_domain=0.1, fallback_share=0.5)
    decision = decide([("a", 0.6), ("general", rival)], thresholds)
    assert (decision.domain, decision.reason) == ("a" if reason == "classified" else "general", reason)
    assert decide([("general", 0.6), ("a", 0.5)], thresholds).reason == "classified"


def test_at_most_four_selections() -> None:
    scores = {label: 0.9 - 0.01 * i for i, label in enumerate(LABELS)}
    assert _decide(scores)[2] == LABELS[:4]


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.lists(st.floats(0.05, 0.5), min_size=6, max_size=6))
def test_a_decision_is_consistent(values: list[float], limits: list[float]) -> None:
    ranked = sorted(zip(LABELS, values, strict=True), key=lambda item: -item[1])
    thresholds = Thresholds(per_label=dict(zip(LABELS, limits, strict=True)), out_of_domain=0.1)
    decision = decide(ranked, thresholds, top=3)
    assert (decision.domain == ranked[0][0]) == (decision.reason == "classified")
    assert len(decision.scores) == 3
    assert decision.score == ranked[0][1]
    assert all(selection.score >= thresholds.per_label[selection.domain] for selection in decision.selections)
    json.dumps(decision.to_json())


@pytest.mark.parametrize("key", ["domain", "score", "reason", "selections", "scores", "target", "router", "encode_ms"])
def test_json_has_the_documented_keys(key: str) -> None:
    assert key in decide([("a", 0.9)], Thresholds(per_label={}, out_of_domain=0.1)).to_json()

"""From a decision to the ways of answering it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_router.config import PolicyConfig, parse_config
from mlx_router.errors import AdapterQuarantined, InvalidRequest, ModelNotFound
from mlx_router.gateway.policy import (
    NO_NEEDS,
    Needs,
    apply_min_scores,
    automatic,
    blend,
    limit_selections,
    needs_of,
    plan_auto,
    plan_explicit,
    stick,
)
from mlx_router.gateway.routes import AdapterEntry, Routes, build_routes
from mlx_router.head.decision import Decision, Selection

RAW: dict[str, Any] = {
    "specialist": [{"name": "hardware", "port": 1, "adapters": ["mascarade-kicad"], "max_context": 4000}],
    "upstream": [
        {"name": "vision", "url": "http://h", "model": "Vision-7B", "images": True, "tools": False},
        {"name": "long", "url": "http://h2", "model": "Long-7B"},
    ],
}
ENTRIES = [
    AdapterEntry(name="mascarade-kicad", domains=("kicad", "kicad-pcb"), specialist="hardware"),
    AdapterEntry(name="mascarade-emc", domains=("emc",), specialist="hardware"),
    AdapterEntry(name="mascarade-bad", domains=("dsp",), specialist="hardware", status="quarantined"),
]


@pytest.fixture
def routes() -> Routes:
    return build_routes(parse_config(RAW, home=Path("/nowhere")), ENTRIES)


def decision(domain: str, score: float = 0.9, reason: str = "classified", **scores: float) -> Decision:
    ranked = sorted({domain: score, **scores}.items(), key=lambda item: -item[1])
    return Decision(
        domain=domain,
        score=score,
        reason=reason,
        selections=tuple(Selection(*item) for item in ranked if item[1] >= 0.5),
        scores=tuple(ranked),
        router="v1",
    )


def test_selections_are_bounded() -> None:
    both = decision("kicad", spice=0.8)
    assert limit_selections(both, 2) is both
    assert [selection.domain for selection in limit_selections(both, 1).selections] == ["kicad"]
    assert limit_selections(both, 1).scores == both.scores


def test_a_classified_domain_goes_to_its_adapter(routes: Routes) -> None:
    plan = plan_auto(decision("kicad"), routes)
    assert plan.steps[0].adapter == "mascarade-kicad"
    assert plan.note == ""


@pytest.mark.parametrize("reason", ["below_threshold", "out_of_domain"])
def test_doubt_goes_to_the_fallback(routes: Routes, reason: str) -> None:
    plan = plan_auto(decision("kicad", 0.2, reason), routes)
    assert [step.adapter for step in plan.steps] == [None]


def test_an_adapter_that_is_not_served_is_said(routes: Routes) -> None:
    plan = plan_auto(decision("emc"), routes)
    assert plan.note == "adapter mascarade-emc is not served"
    assert plan.steps[0].model == "base"


def test_a_quarantined_adapter_gets_nothing(routes: Routes) -> None:
    plan = plan_auto(decision("dsp"), routes)
    assert all(step.adapter is None for step in plan.steps)
    assert plan.note


def test_minimum_scores_pass_over_selections() -> None:
    policy = PolicyConfig(min_score={"kicad": 0.95})
    held = apply_min_scores(decision("kicad", 0.9, **{"spice": 0.6}), policy)
    assert (held.domain, held.score, held.reason) == ("spice", 0.6, "classified")
    alone = apply_min_scores(decision("kicad", 0.9), policy)
    assert (alone.domain, alone.reason) == ("general", "below_threshold")
    assert apply_min_scores(decision("kicad", 0.96), policy).domain == "kicad"


@pytest.mark.parametrize(
    ("found", "follow_up", "stays"),
    [
        (decision("spice", 0.9, kicad=0.05), False, False),  # the topic moves
        (decision("spice", 0.6, kicad=0.45), False, True),  # it hardly does
        (decision("general", 0.3, "below_threshold", kicad=0.2), False, True),
        (decision("general", 0.05, "out_of_domain"), False, False),
        (decision("general", 0.05, "out_of_domain"), True, True),
        (decision("spice", 0.9, kicad=0.05), True, False),  # "and in SPICE?" moves too
    ],
)
def test_a_conversation_stays_unless_the_topic_moves(found: Decision, follow_up: bool, stays: bool) -> None:
    stuck = stick(found, "kicad", margin=0.3, follow_up=follow_up)
    assert (stuck.domain == "kicad") is stays
    assert stuck.reason in ("classified", found.reason)


def test_a_follow_up_is_read_both_ways() -> None:
    rust = blend(decision("python", 0.8, rust=0.7), decision("rust", 0.9, python=0.02))
    assert (rust.domain, rust.reason) == ("rust", "classified")
    assert rust.score == pytest.approx(0.8)
    stm32 = blend(decision("stm32", 0.9, embedded=0.3), decision("embedded", 0.5, stm32=0.2))
    assert stm32.domain == "stm32"
    joined = decision("sql", 0.6)
    assert blend(joined, decision("general", 0.05, "out_of_domain")) is joined
    vague = decision("general", 0.3, "below_threshold", sql=0.3)
    assert blend(vague, vague) is vague


def test_names(routes: Routes) -> None:
    for model in (None, "auto", "ailiance/auto"):
        assert automatic(model)
    adapter = plan_explicit("mascarade-kicad", routes)
    assert adapter.strict
    assert (adapter.decision.domain, adapter.decision.reason) == ("kicad", "explicit")
    domain = plan_explicit("kicad-pcb", routes)
    assert not domain.strict
    assert domain.decision.domain == "kicad-pcb"
    assert plan_explicit("base", routes).steps[0].model == "base"
    assert plan_explicit("Vision-7B", routes).steps[0].pools == ("vision",)
    assert plan_explicit("loaded-later", routes, adapter_state="resident").steps[0].adapter == "loaded-later"
    with pytest.raises(ModelNotFound, match="gpt-4"):
        plan_explicit("gpt-4", routes)
    with pytest.raises(ModelNotFound, match="no weights are installed for adapter 'mascarade-kicad'"):
        plan_explicit("mascarade-kicad", routes, adapter_state="missing")
    with pytest.raises(ModelNotFound, match="unloaded"):
        plan_explicit("mascarade-kicad", routes, adapter_state="unloaded")
    with pytest.raises(AdapterQuarantined):
        plan_explicit("mascarade-kicad", routes, adapter_state="quarantined")


def test_images_go_where_they_are_understood(routes: Routes) -> None:
    plan = plan_auto(decision("kicad"), routes, Needs(images=True))
    assert [step.pools for step in plan.steps] == [("vision",)]
    assert plan.note
    with pytest.raises(InvalidRequest, match="images"):
        plan_auto(decision("kicad"), routes, Needs(images=True, tools=True))


def test_long_prompts_go_where_they_fit(routes: Routes) -> None:
    plan = plan_auto(decision("kicad"), routes, Needs(context_tokens=5000))
    assert ("long",) in [step.pools for step in plan.steps]
    assert all(step.pools != ("hardware",) for step in plan.steps)


def test_a_prompt_too_long_for_everybody_is_refused_by_the_model_itself() -> None:
    raw = {"specialist": RAW["specialist"]}
    routes = build_routes(parse_config(raw, home=Path("/nowhere")), ENTRIES)
    assert plan_auto(decision("kicad"), routes, Needs(context_tokens=5000)).steps[0].adapter == "mascarade-kicad"


def test_needs_are_read_from_the_body() -> None:
    assert needs_of({"messages": [{"role": "user", "content": "hi"}]}, 100) is NO_NEEDS
    image = {"messages": [{"content": [{"type": "image_url"}]}], "tools": [{}]}
    assert needs_of(image, 10**6) == Needs(tools=True, images=True)
    assert needs_of({"messages": [{"content": "x"}]}, 40_000).context_tokens == 10_000

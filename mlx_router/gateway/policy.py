"""From a decision to the ways of answering it. Pure functions: no clocks, sockets or state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_router.config import PolicyConfig
from mlx_router.errors import AdapterQuarantined, InvalidRequest, ModelNotFound
from mlx_router.gateway.routes import AUTO, BASE, Destination, Pool, Routes, Step
from mlx_router.head.decision import (
    BELOW_THRESHOLD,
    CLASSIFIED,
    EXPLICIT,
    OUT_OF_DOMAIN,
    UNAVAILABLE,
    Decision,
    Selection,
)

CHARS_PER_TOKEN = 4  # to tell that a prompt cannot fit, not to count
GENERAL = "general"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model beyond text."""

    tools: bool = False
    images: bool = False
    context_tokens: int = 0  # estimate; 0: small


NO_NEEDS = Needs()


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision and the ways to answer it, best first. `strict`: only the first step keeps what was asked for."""

    decision: Decision
    steps: tuple[Step, ...]
    strict: bool = False
    note: str = ""  # why the first step is already a substitute


def automatic(model: object) -> bool:
    """Whether `model` asks us to choose."""
    return model is None or model in AUTO


def limit_selections(decision: Decision, max_active: int) -> Decision:
    """The decision with its best `max_active` selections."""
    if len(decision.selections) <= max_active:
        return decision
    return replace(decision, selections=decision.selections[:max_active])


def apply_min_scores(decision: Decision, policy: PolicyConfig, fallback: str = GENERAL) -> Decision:
    """Hold a classified decision to the operator's minimum scores: the next selection that passes, or the fallback."""
    if decision.reason != CLASSIFIED or not policy.min_score:
        return decision
    if decision.score >= policy.min_score.get(decision.domain, 0.0):
        return decision
    for selection in decision.selections:
        if selection.score >= policy.min_score.get(selection.domain, 0.0):
            return replace(decision, domain=selection.domain, score=selection.score)
    return replace(decision, domain=fallback, reason=BELOW_THRESHOLD)


def stick(decision: Decision, domain: str, *, margin: float, follow_up: bool) -> Decision:
    """Keep a conversation in its domain unless the topic really moves.

    It moves when another label was classified and leads the conversation's own by `margin`, or when the turn is
    like nothing in the corpus and is not a mere follow-up.
    """
    if decision.domain == domain or decision.reason not in (CLASSIFIED, BELOW_THRESHOLD, OUT_OF_DOMAIN):
        return decision
    own = dict(decision.scores).get(domain, 0.0)
    if decision.reason == OUT_OF_DOMAIN and not follow_up:
        return decision
    leads = decision.score - own >= margin
    if decision.reason == CLASSIFIED and leads:
        return decision
    if decision.reason == BELOW_THRESHOLD and leads and not follow_up:
        return decision
    return replace(decision, domain=domain, score=own, reason=CLASSIFIED)


def blend(joined: Decision, alone: Decision) -> Decision:
    """The decision of a turn that leans on earlier ones, from both readings: with them, and on its own.

    "and in Rust?" after a question on Python is about Rust; "with DMA?" after one on an STM32 is about the STM32.
    The label with the best mean wins if either reading selected it; else the reading with the context stands.
    """
    if alone.reason == OUT_OF_DOMAIN or not alone.scores:
        return joined
    own = dict(alone.scores)
    ranked = sorted(
        ((label, (score + own.get(label, 0.0)) / 2) for label, score in joined.scores), key=lambda item: -item[1]
    )
    label, score = ranked[0]
    selected = {selection.domain for selection in (*joined.selections, *alone.selections)}
    if label not in selected:
        return joined
    passed = tuple(Selection(name, value) for name, value in ranked if name in selected)
    return replace(joined, domain=label, score=score, reason=CLASSIFIED, selections=passed[:4], scores=tuple(ranked))


def plan_auto(decision: Decision, routes: Routes, needs: Needs = NO_NEEDS) -> Plan:
    """The ways to answer a routed prompt."""
    if decision.reason in (BELOW_THRESHOLD, OUT_OF_DOMAIN):
        destination = routes.fallback
    else:
        destination = routes.destination(decision.domain)
    return _with_needs(decision, destination, routes, needs)


def plan_explicit(
    model: str,
    routes: Routes,
    needs: Needs = NO_NEEDS,
    *,
    adapter_state: str = "",
    router: str = "",
) -> Plan:
    """The ways to answer a request that names its model: an adapter, an upstream, the base or a domain.

    `adapter_state` is what specialists report of an adapter of this name, which no manifest needs to know.
    Raises ModelNotFound, AdapterQuarantined.
    """

    def decision(domain: str) -> Decision:
        return Decision(domain=domain, score=1.0, reason=EXPLICIT, router=router)

    if model == BASE:
        return _with_needs(decision(GENERAL), Destination("base"), routes, needs)
    if model in routes.hosts or adapter_state:
        entry = routes.adapters.get(model)
        if adapter_state == "quarantined" or (entry is not None and entry.status == "quarantined"):
            raise AdapterQuarantined(f"adapter {model!r} is quarantined", param="model")
        if adapter_state == "missing":
            raise ModelNotFound(f"no weights are installed for adapter {model!r}", param="model")
        if adapter_state == "unloaded":
            raise ModelNotFound(f"adapter {model!r} is unloaded", param="model")
        hosts = routes.hosts.get(model) or routes.bases
        steps = (Step(hosts, model, model),)
        return Plan(decision(routes.domain_of(model)), _fitting(steps, routes, needs) or steps, strict=True)
    for pool in routes.pools.values():
        if pool.kind == "upstream" and model in (pool.name, pool.model):
            steps = (Step((pool.name,), None, pool.model),)
            return Plan(decision(GENERAL), steps, strict=True)
    if model in routes.by_domain:
        return _with_needs(decision(model), routes.destination(model), routes, needs)
    raise ModelNotFound(f"the model {model!r} does not exist", param="model")


def _with_needs(decision: Decision, destination: Destination, routes: Routes, needs: Needs) -> Plan:
    steps = routes.steps(destination)
    note = ""
    if destination.kind == "adapter":
        entry = routes.adapters.get(destination.name)
        if not routes.hosts.get(destination.name):
            note = f"adapter {destination.name} is not served"
        elif entry is not None and entry.status == "quarantined":
            note = f"adapter {destination.name} is quarantined"
            steps = tuple(step for step in steps if step.adapter != destination.name)
    if needs is not NO_NEEDS:
        fitting = _fitting(steps, routes, needs) or _others(routes, needs)
        if not fitting and (needs.images or needs.tools):
            what = "images" if needs.images else "tools"
            raise InvalidRequest(f"no model here takes {what}", param="messages" if needs.images else "tools")
        if fitting and steps and fitting[0] is not steps[0]:
            note = note or f"{steps[0].model} cannot take this request"
        steps = fitting or steps  # too long for every one of them: let the first say so exactly
    return Plan(decision, steps, note=note)


def _fitting(steps: tuple[Step, ...], routes: Routes, needs: Needs) -> tuple[Step, ...]:
    """The steps without the pools that cannot take the request; steps that stay whole stay the same object."""
    fitting: list[Step] = []
    for step in steps:
        pools = tuple(name for name in step.pools if _takes(routes.pools[name], needs))
        if pools:
            fitting.append(step if pools == step.pools else replace(step, pools=pools))
    return tuple(fitting)


def _others(routes: Routes, needs: Needs) -> tuple[Step, ...]:
    """Upstreams outside of the plan that can take the request."""
    return tuple(
        Step((pool.name,), None, pool.model)
        for pool in routes.pools.values()
        if pool.kind == "upstream" and _takes(pool, needs)
    )


def _takes(pool: Pool, needs: Needs) -> bool:
    if needs.images and not pool.images:
        return False
    if needs.tools and not pool.tools:
        return False
    return not (pool.max_context and needs.context_tokens > pool.max_context)


def needs_of(body: Mapping[str, Any], size_bytes: int) -> Needs:
    """What a chat or completion body needs; `size_bytes` of the raw body bounds its length cheaply."""
    tools = bool(body.get("tools"))
    images = False
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list) and any(_is_image(part) for part in content):
                images = True
                break
    tokens = 0 if images or size_bytes < 16_384 else size_bytes // CHARS_PER_TOKEN
    if not (tools or images or tokens):
        return NO_NEEDS
    return Needs(tools, images, tokens)


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image")


def substituted(decision: Decision) -> Decision:
    """The decision of a request that something else than its destination answers."""
    return replace(decision, reason=UNAVAILABLE)

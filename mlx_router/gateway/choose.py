"""From a request's body to a plan: the wish, the router's decision, the conversation, the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlx_router.errors import InvalidRequest, RouterError
from mlx_router.gateway import policy
from mlx_router.gateway.conversations import Thread
from mlx_router.gateway.policy import Needs, Plan
from mlx_router.gateway.service import Gateway, Setup
from mlx_router.gateway.wish import Wish, conversation_keys, prompt_text, wish_of
from mlx_router.head.decision import UNAVAILABLE, Decision


@dataclass(slots=True, kw_only=True)
class Choice:
    """What was decided, and what the log wants to know of how."""

    plan: Plan
    wish: Wish
    key: object = None  # of the conversation with this turn
    prefix: object = None  # names what its prompt begins with
    endpoint: str | None = None  # that has either in its cache
    cached: bool = False
    sticky: bool = False
    waited_s: float = 0.0  # for the router


async def choose(
    gateway: Gateway,
    setup: Setup,
    path: str,
    body: dict[str, Any],
    model: str | None,
    size_bytes: int,
    headers: Iterable[tuple[bytes, bytes]],
) -> Choice:
    """Plan a chat or plain completion. Raises InvalidRequest, ModelNotFound, AdapterQuarantined, Overloaded."""
    needs = policy.needs_of(body, size_bytes)
    known = key = prefix = None  # the conversation before this turn, with it, and its prompt's beginning
    messages: list[Any] = []
    if path == "/chat/completions":
        messages = messages_of(body)
        known = key = _conversation(headers)
        if key is None:
            known, key = conversation_keys(messages)
        prefix = _prefix(body)
    thread = gateway.conversations.get(known)
    place = thread or gateway.conversations.get(prefix)
    endpoint = place.endpoint if place is not None else None
    if not policy.automatic(model):
        plan = policy.plan_explicit(
            str(model),
            setup.routes,
            needs,
            adapter_state=setup.fleet.adapter_state(str(model)),
            router=gateway.router.status.version,
        )
        return Choice(plan=plan, wish=Wish(""), key=key, prefix=prefix, endpoint=endpoint)
    wish = wish_of(messages) if messages else Wish(prompt_text(body.get("prompt")))
    choice = await choose_for(gateway, setup, wish, thread, needs)
    choice.key, choice.prefix, choice.endpoint = key, prefix, endpoint
    return choice


async def choose_for(
    gateway: Gateway, setup: Setup, wish: Wish, thread: Thread | None, needs: Needs = policy.NO_NEEDS
) -> Choice:
    """Plan for a wish. Where the router cannot say anything, the base answers."""
    waited_s, cached, note = 0.0, True, ""
    decision = gateway.router.lookup(wish.prompt)
    alone = gateway.router.lookup(wish.text) if wish.follow_up == "elliptic" else None
    if decision is None or (alone is None and wish.follow_up == "elliptic"):
        started = time.perf_counter()
        cached = False
        try:
            decision, alone = await _classify(gateway, wish, decision, alone)
        except RouterError as error:
            if error.status == 429:
                raise
            note = "the router is not available"
            decision = Decision(domain=policy.GENERAL, score=0.0, reason=UNAVAILABLE)
        waited_s = time.perf_counter() - started
    if alone is not None:
        decision = policy.blend(decision, alone)
    rules = setup.config.policy
    decision = policy.limit_selections(decision, rules.max_active)  # of this configuration: the cache has them all
    decision = policy.apply_min_scores(decision, rules)
    sticky = False
    if thread is not None and thread.domain:
        stuck = policy.stick(decision, thread.domain, margin=rules.stick_margin, follow_up=wish.follow_up != "none")
        sticky, decision = stuck is not decision, stuck
    plan = policy.plan_auto(decision, setup.routes, needs)
    if note:
        plan = replace(plan, note=note)
    return Choice(plan=plan, wish=wish, cached=cached, sticky=sticky, waited_s=waited_s)


async def _classify(
    gateway: Gateway, wish: Wish, decision: Decision | None, alone: Decision | None
) -> tuple[Decision, Decision | None]:
    """What the cache did not have; both readings of a follow-up go into one batch."""
    router = gateway.router
    if wish.follow_up != "elliptic":
        return decision or await router.classify(wish.prompt), None
    found = await asyncio.gather(
        *(router.classify(text) for text, known in ((wish.prompt, decision), (wish.text, alone)) if known is None)
    )
    rest = iter(found)
    return decision or next(rest), alone or next(rest)


def messages_of(body: dict[str, Any]) -> list[Any]:
    """The messages of a chat body. Raises InvalidRequest where there are none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    return messages


def _conversation(headers: Iterable[tuple[bytes, bytes]]) -> object:
    """The name that the client gives its conversation, or None."""
    for name, value in headers:
        if name == b"x-conversation-id" and value:
            return value[:200]
    return None


def _prefix(body: dict[str, Any]) -> object:
    """OpenAI's prompt_cache_key: what it names is in one server's cache. Many conversations may share it."""
    named = body.get("prompt_cache_key")
    return named[:200] if isinstance(named, str) and named else None

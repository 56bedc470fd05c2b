"""A planned request to its answer: step by step, each once, at most one attempt after the first that was sent."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mlx_router.errors import Overloaded, RouterError, SlotsBusy, UpstreamUnavailable
from mlx_router.gateway.body import with_model
from mlx_router.gateway.policy import Plan, substituted
from mlx_router.gateway.probe import Prober
from mlx_router.gateway.relay import Answer, Attempt, Headers, Relay, Send
from mlx_router.gateway.routes import BASE, Step
from mlx_router.gateway.upstreams import Endpoint, Fleet
from mlx_router.head.decision import UNAVAILABLE, Decision

MAX_SENT = 2  # a request may reach two endpoints, never more
MAX_TRIED = 8  # connections refused and refusals before anything was sent do not count as sent

# Refusals of one adapter; the base of the same specialist may still answer.
_ADAPTER_REFUSED = frozenset({404, 409, 507})
# The endpoint cannot answer; another one may.
_ENDPOINT_REFUSED = frozenset({429, 502, 503, 504})
NO_ADAPTER = "none"  # x-router-adapter of an upstream that is no specialist


@dataclass(slots=True, kw_only=True)
class Job:
    """One request on its way."""

    request_id: str
    path: str  # below /v1
    raw: bytes
    body: dict[str, Any]
    headers: dict[str, str]  # for the endpoint, without authorization
    authorization: str  # for our specialists only
    plan: Plan
    started: float  # loop time at which the request began to come
    read_at: float  # time.perf_counter() when all of it was there; a loop's time stands still between two waits
    conversation: str | None = None  # key of the endpoint that has its cache
    extra_headers: Headers = field(default_factory=list)

    # What came of it.
    decision: Decision = field(init=False)
    endpoint: Endpoint | None = None
    adapter: str = "-"
    specialist: str = "-"
    notes: list[str] = field(default_factory=list)
    attempts: int = 0
    sent_at: float = 0.0  # time.perf_counter()
    status: int = 0
    answer: Answer | None = None
    begun: bool = False  # the client has got the status line

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return max(0, self.attempts - 1)

    def __post_init__(self) -> None:
        self.decision = self.plan.decision
        if self.plan.note:
            self.notes.append(self.plan.note)


class Forwarder:
    """Executes plans on a fleet."""

    def __init__(self, relay: Relay, prober: Prober) -> None:
        self._relay = relay
        self._prober = prober

    async def run(self, job: Job, fleet: Fleet, send: Send) -> None:
        """Answer the client. Raises UpstreamUnavailable where nothing can, Overloaded where all are merely full.

        Nothing has been sent then.
        """
        tried: frozenset[str] = frozenset()
        sent = 0
        held: tuple[Answer, Endpoint, Step] | None = None
        again: tuple[Step, Endpoint] | None = None
        failure: RouterError | None = None
        for index, step in enumerate(job.plan.steps):
            while sent < MAX_SENT and len(tried) < MAX_TRIED:
                endpoint, reasons = fleet.pick(step, conversation=job.conversation, tried=tried)
                if endpoint is None:
                    for reason in reasons:
                        _note(job, reason)
                    break
                fleet.take(endpoint)
                answer = await self._attempt(job, step, endpoint, index > 0, send)
                if answer.kind == "sent":
                    return
                sent += answer.reached
                if answer.kind == "failed":
                    tried |= {endpoint.key}
                    failure, held = answer.error or UpstreamUnavailable("no answer"), None
                    _note(job, f"{endpoint.pool}: {failure.message}")
                    if failure.status == 504:
                        if answer.reached and endpoint.state == "up" and await self._prober.check(endpoint):
                            # It is still at work; elsewhere the same work would be done a second time.
                            job.decision = substituted(job.decision)
                            raise failure
                    else:
                        if answer.reached:
                            again = again or (step, endpoint)
                        endpoint.failure(failure.message)
                    self._prober.wake(endpoint)
                    continue
                held = (answer, endpoint, step)
                if answer.status == 429:
                    tried |= {endpoint.key}
                    _note(job, f"{endpoint.pool} is full")
                    endpoint.overloaded(_retry_after_s(answer))
                    continue
                self._prober.wake(endpoint)
                if _refuses_adapter(job.plan, step, answer):
                    _note(job, f"{endpoint.pool} refuses adapter {step.adapter} ({answer.status})")
                    break
                # One request's failure: whether the endpoint is down is for its probe to say.
                tried |= {endpoint.key}
                _note(job, f"{endpoint.pool} is not available ({answer.status})")
        if held is None and again is not None and sent < MAX_SENT and await self._prober.check(again[1]):
            # Nobody else can answer and the endpoint is back, or never was away: an idle connection was cut.
            answer = await self._attempt(job, *again, False, send)
            if answer.kind == "sent":
                return
            failure = answer.error or failure
        if held is not None:
            await self._pass_held(job, *held, send)
            return
        job.decision = substituted(job.decision)
        if failure is not None and failure.status == 504:
            raise type(failure)(failure.message)
        if failure is None and (wait_s := fleet.full_for_s(job.plan.steps)) is not None:
            raise Overloaded("every server that can answer this request is full", retry_after_s=wait_s)
        why = "; ".join(job.notes) or "no upstream is configured for it"
        raise UpstreamUnavailable(f"nothing can answer this request: {why}", retry_after_s=1.0)

    async def _attempt(self, job: Job, step: Step, endpoint: Endpoint, substitute: bool, send: Send) -> Answer:
        headers = dict(job.headers)
        if endpoint.api_key:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        elif job.authorization and endpoint.kind == "specialist":
            headers["authorization"] = job.authorization
        strict = job.plan.strict

        def hold(status: int) -> bool:
            if status in _ENDPOINT_REFUSED:
                return True
            return step.adapter is not None and not strict and status in _ADAPTER_REFUSED

        def begin(answer: Answer) -> Headers:
            self._settle(job, step, endpoint, substitute, answer)
            return self._headers(job)

        # One of ours computes an answer in one piece for minutes, and has a watchdog, a time-out and a health check.
        patient = endpoint.kind == "specialist" and not job.body.get("stream")
        job.attempts += 1
        job.sent_at = time.perf_counter()
        answer = await self._relay.run(
            Attempt(
                endpoint=endpoint,
                path=job.path,
                body=with_model(job.raw, job.body, step.model),
                headers=headers,
                started=job.started,
                hold=hold,
                begin=begin,
                alive=partial(self._prober.check, endpoint) if patient else None,
            ),
            send,
        )
        job.answer = answer
        return answer

    def _settle(self, job: Job, step: Step, endpoint: Endpoint, substitute: bool, answer: Answer) -> None:
        """Write down who answers, as the answer itself says where it does."""
        adapter = step.adapter or (BASE if endpoint.kind == "specialist" else NO_ADAPTER)
        if endpoint.kind == "specialist" and answer.adapter and answer.adapter != adapter:
            _note(job, f"{endpoint.pool} answered with {answer.adapter}")
            adapter, substitute = answer.adapter, True
        substitute = substitute or bool(job.plan.note)
        if substitute:
            job.decision = substituted(job.decision)
        job.endpoint, job.adapter, job.specialist = endpoint, adapter, endpoint.pool
        job.status, job.begun = answer.status, True

    async def _pass_held(self, job: Job, answer: Answer, endpoint: Endpoint, step: Step, send: Send) -> None:
        """Every way is closed: the client gets the last refusal as it came."""
        self._settle(job, step, endpoint, False, answer)
        headers = [*self._headers(job), *(answer.headers or ()), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _headers(self, job: Job) -> Headers:
        return [*decision_headers(job.decision, job.adapter, job.specialist, job.notes), *job.extra_headers]


def decision_headers(decision: Decision, adapter: str, specialist: str, notes: list[str]) -> Headers:
    """The x-router-* headers of an answer."""
    headers = [
        (b"x-router-domain", _ascii(decision.domain)),
        (b"x-router-score", b"%.4f" % decision.score),
        (b"x-router-reason", decision.reason.encode()),
        (b"x-router-adapter", _ascii(adapter)),
        (b"x-router-specialist", _ascii(specialist)),
        (b"x-router-version", _ascii(decision.router or "none")),
    ]
    if decision.reason == UNAVAILABLE and notes:
        headers.append((b"x-router-detail", _ascii("; ".join(dict.fromkeys(notes)))[:500]))
    return headers


def _ascii(text: str) -> bytes:
    """A header value: what is not printable ASCII is escaped."""
    if text.isascii() and text.isprintable():
        return text.encode()
    return text.encode("unicode_escape")


def _note(job: Job, text: str) -> None:
    if text and text not in job.notes:
        job.notes.append(text)


def _refuses_adapter(plan: Plan, step: Step, answer: Answer) -> bool:
    """Whether the base of the same specialist may still answer."""
    if step.adapter is None or plan.strict:
        return False
    return answer.status in _ADAPTER_REFUSED or _error_code(answer) == SlotsBusy.code


def _error_code(answer: Answer) -> str:
    """The `code` of a held answer's envelope; empty where it has none."""
    try:
        return str(json.loads(answer.body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""


def _retry_after_s(answer: Answer) -> float:
    for name, value in answer.headers or ():
        if name.lower() == b"retry-after" and value.isdigit():
            return float(value)
    return 1.0

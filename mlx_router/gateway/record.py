"""What is left of a request: counters, histograms, the decision log, the conversation's place."""

from __future__ import annotations

import json
import time

from mlx_router.config import Config
from mlx_router.errors import RouterError
from mlx_router.gateway.choose import Choice
from mlx_router.gateway.conversations import Thread
from mlx_router.gateway.forward import Job
from mlx_router.gateway.policy import GENERAL
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.wire import ClientGone
from mlx_router.head.decision import EXPLICIT

# Formatted by hand, a third of what encoding a dict costs; every string goes through _quote.
_LINE = (
    '{"time":%.3f,"request_id":%s,"endpoint":%s,"model":%s,"domain":%s,"score":%.4f,"reason":"%s","adapter":%s,'
    '"specialist":%s,"router":%s,"status":%d,"error":%s,"stream":%s,"cached":%s,"sticky":%s,"retries":%d,'
    '"detail":%s,"prompt_chars":%d,"encode_ms":%.3f,"overhead_ms":%s,"first_byte_ms":%s,"total_ms":%.3f,'
    '"prompt_tokens":%d,"completion_tokens":%d%s}'
)
CLIENT_GONE = 499  # as nginx logs it


def record(
    gateway: Gateway,
    config: Config,
    path: str,
    request_id: str,
    requested: str | None,
    choice: Choice | None,
    job: Job | None,
    error: BaseException | None,
    seconds: float,
) -> None:
    """Note a request that has ended, however it ended; `requested` is None where its body could not be read."""
    metrics = gateway.metrics
    gateway.finish(seconds)
    status, code = _outcome(job, error)
    decision = job.decision if job is not None else choice.plan.decision if choice is not None else None
    domain = decision.domain if decision is not None else "-"
    reason = decision.reason if decision is not None else "-"
    adapter = job.adapter if job is not None else "-"
    metrics.requests[(path, domain, adapter, reason, status)] += 1
    if code:
        metrics.errors[(domain, adapter, reason, code)] += 1
    metrics.duration.observe(seconds)
    first_byte_s = overhead_s = None
    prompt_tokens = completion_tokens = 0
    if job is not None and job.retries:
        metrics.events["retries"] += job.retries
    if job is not None and job.answer is not None and choice is not None:
        answer = job.answer
        if not job.retries:
            overhead_s = max(0.0, job.sent_at - job.read_at - choice.waited_s)
            metrics.overhead.observe(overhead_s)
        if job.begun and answer.kind == "sent":
            first_byte_s = answer.first_byte_s
            metrics.first_byte.observe(first_byte_s)
        prompt_tokens, completion_tokens = answer.prompt_tokens, answer.completion_tokens
        if prompt_tokens:
            metrics.tokens[("prompt", domain, adapter)] += prompt_tokens
        if completion_tokens:
            metrics.tokens[("completion", domain, adapter)] += completion_tokens
        if job.endpoint is not None and status < 400:
            explicit = reason == EXPLICIT and domain == GENERAL
            gateway.conversations.put(choice.key, Thread("" if explicit else domain, job.endpoint.key))
            gateway.conversations.put(choice.prefix, Thread("", job.endpoint.key))
    wish = choice.wish if choice is not None else None
    line = _LINE % (
        time.time(),
        _quote(request_id),
        _quote(path),
        _quote(requested),
        _quote(domain),
        decision.score if decision is not None else 0.0,
        reason,
        _quote(adapter),
        _quote(job.specialist if job is not None else "-"),
        _quote(decision.router if decision is not None else ""),
        status,
        _quote(code or None),
        "true" if job is not None and job.body.get("stream") else "false",
        "true" if choice is not None and choice.cached else "false",
        "true" if choice is not None and choice.sticky else "false",
        job.retries if job is not None else 0,
        _quote("; ".join(job.notes)) if job is not None and job.notes else "null",
        len(wish.text) if wish is not None else 0,
        decision.encode_ms if decision is not None else 0.0,
        "null" if overhead_s is None else "%.3f" % (overhead_s * 1e3),
        "null" if first_byte_s is None else "%.3f" % (first_byte_s * 1e3),
        seconds * 1e3,
        prompt_tokens,
        completion_tokens,
        f',"prompt":{json.dumps(wish.prompt)}' if wish is not None and config.gateway.log_prompts else "",
    )
    gateway.log.add(line)


def _outcome(job: Job | None, error: BaseException | None) -> tuple[int, str]:
    """Status as the client saw it, and the code of what went wrong."""
    if job is not None and job.begun:
        broken = job.answer.error if job.answer is not None else None
        if broken is not None:
            return job.status, broken.code
        if error is not None:
            return job.status, error.code if isinstance(error, RouterError) else "client_gone"
        return job.status, f"upstream_{job.status}" if job.status >= 400 else ""
    if error is None:
        return 200, ""
    if isinstance(error, RouterError):
        return error.status, error.code
    if isinstance(error, ClientGone):
        return CLIENT_GONE, "client_gone"
    return 500, "internal_error"


def _quote(text: str | None) -> str:
    """A JSON string, or null."""
    if text is None:
        return "null"
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return json.dumps(text)

"""What is left of a request: counters, histograms, the decision log, the conversation's place."""

from __future__ import annotations

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

CLIENT_GONE = 499  # as nginx logs it


def record(
    gateway: Gateway,
    config: Config,
    path: str,
    request_id: str,
    choice: Choice | None,
    job: Job | None,
    error: BaseException | None,
    seconds: float,
) -> None:
    """Note a request that has ended, however it ended."""
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
        overhead_s = max(0.0, job.sent_at - job.started - choice.waited_s)
        if not job.retries:
            metrics.overhead.observe(overhead_s)
        if job.begun:
            first_byte_s = answer.first_byte_s
            metrics.first_byte.observe(first_byte_s)
        prompt_tokens, completion_tokens = answer.prompt_tokens, answer.completion_tokens
        if prompt_tokens:
            metrics.tokens[("prompt", domain, adapter)] += prompt_tokens
        if completion_tokens:
            metrics.tokens[("completion", domain, adapter)] += completion_tokens
        if job.endpoint is not None and choice.key is not None and status < 400:
            explicit = reason == EXPLICIT and domain == GENERAL
            gateway.conversations.put(choice.key, Thread("" if explicit else domain, job.endpoint.key))
    entry = {
        "time": round(time.time(), 3),
        "request_id": request_id,
        "endpoint": path,
        "model": choice.requested if choice is not None else None,
        "domain": domain,
        "score": round(decision.score, 4) if decision is not None else None,
        "reason": reason,
        "adapter": adapter,
        "specialist": job.specialist if job is not None else "-",
        "router": decision.router if decision is not None else "",
        "status": status,
        "error": code or None,
        "stream": bool(job is not None and job.body.get("stream")),
        "cached": choice.cached if choice is not None else False,
        "sticky": choice.sticky if choice is not None else False,
        "retries": job.retries if job is not None else 0,
        "detail": "; ".join(job.notes) if job is not None and job.notes else None,
        "prompt_chars": len(choice.wish.text) if choice is not None else 0,
        "encode_ms": round(decision.encode_ms, 3) if decision is not None else None,
        "overhead_ms": round(overhead_s * 1e3, 3) if overhead_s is not None else None,
        "first_byte_ms": round(first_byte_s * 1e3, 3) if first_byte_s is not None else None,
        "total_ms": round(seconds * 1e3, 3),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }
    if config.gateway.log_prompts and choice is not None:
        entry["prompt"] = choice.wish.prompt
    gateway.log.add(entry)


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

"""POST /v1/chat/completions and /v1/completions: from the body's bytes to the last byte of the answer.

The first event of the engine decides the status: until then errors are ordinary answers, afterwards a stream can
only end with an error event. A client that leaves ends its jobs before the next step, streaming or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from dataclasses import dataclass

from starlette.responses import Response

from mlx_router.errors import RouterError
from mlx_router.protocol import sse
from mlx_router.protocol.chunks import Answer
from mlx_router.protocol.requests import ChatRequest, CompletionRequest, SamplingBody, parse_body
from mlx_router.specialist.choices import Choice, usage_of
from mlx_router.specialist.job import Delta, Event, Failed, Job, Started
from mlx_router.specialist.mail import ClientGone, Mail
from mlx_router.specialist.prompts import Prepared, Prompts
from mlx_router.specialist.service import Specialist
from mlx_router.specialist.wire import (
    Receive,
    Scope,
    Send,
    disconnected,
    read_body,
    send_bytes,
    send_error,
    send_head,
    send_json,
)

log = logging.getLogger(__name__)

QUIET_S = 10.0  # silence after which a stream gets a comment, so that nobody takes it for dead
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(slots=True)
class Timing:
    """Moments of one request, in seconds of the performance counter."""

    arrived: float
    first_token: float | None = None


class CompletionResponse(Response):
    """The answer to one request; the route returns it and the server runs it."""

    def __init__(self, specialist: Specialist, *, chat: bool) -> None:
        super().__init__()
        self._specialist = specialist
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        specialist, timing = self._specialist, Timing(time.perf_counter())
        adapter, status, choices = "unknown", "error", list[Choice]()
        try:
            raw = await read_body(scope, receive, specialist.config.gateway.body_limit_bytes)
            request: ChatRequest | CompletionRequest
            request = parse_body(ChatRequest, raw) if self._chat else parse_body(CompletionRequest, raw)
            name = specialist.catalog.resolve(request.model)
            adapter = name or "base"
            jobs, choices = await self._jobs(request, name)
            specialist.catalog.count(adapter)
            mail = specialist.engine.submit(jobs)
            watch = asyncio.create_task(_watch(receive, mail))
            try:
                status = await self._answer(request, adapter, mail, choices, send, timing)
            finally:
                watch.cancel()
                specialist.engine.close(mail)
        except ClientGone:
            status = "left"
        except RouterError as error:
            status = str(error.status)
            with contextlib.suppress(ClientGone):
                await send_error(send, error)
        finally:
            self._record(scope, adapter, status, choices, timing)

    async def _jobs(
        self, request: ChatRequest | CompletionRequest, adapter: str | None
    ) -> tuple[list[Job], list[Choice]]:
        """One job and one choice for each of n answers to each prompt."""
        answer_id, count = uuid.uuid4().hex, request.n or 1
        chat = isinstance(request, ChatRequest)
        limit = request.token_limit if isinstance(request, ChatRequest) else request.max_tokens
        logprobs = _logprobs(request)

        def prepare(prompts: Prompts) -> list[tuple[Prepared, list[Job]]]:
            prepared = [prompts.chat(request)] if isinstance(request, ChatRequest) else prompts.completion(request)
            return [
                (
                    one,
                    prompts.jobs(
                        one,
                        request,
                        request_id=answer_id,
                        ids=[f"{answer_id}-{number}-{index}" for index in range(count)],
                        adapter=adapter,
                        limit=limit,
                        logprobs=logprobs,
                    ),
                )
                for number, one in enumerate(prepared)
            ]

        jobs: list[Job] = []
        choices: list[Choice] = []
        prompts = 1 if isinstance(request, ChatRequest) else len(request.prompts)
        for number, (one, made) in enumerate(await self._specialist.tokenize(prepare, jobs=prompts * count)):
            for index, job in enumerate(made):
                text = _echo(request, number)
                paid = len(one.tokens) if index == 0 else 0
                choices.append(Choice(len(jobs), chat, paid, logprobs is not None, text=text))
                jobs.append(job)
        return jobs, choices

    async def _answer(
        self,
        request: ChatRequest | CompletionRequest,
        adapter: str,
        mail: Mail,
        choices: list[Choice],
        send: Send,
        timing: Timing,
    ) -> str:
        specialist = self._specialist
        answer = Answer(
            id=f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            fingerprint=specialist.fingerprint,
            chat=self._chat,
        )
        events = await mail.take()
        headers = {"x-adapter": adapter, "x-adapter-digest": _digest(events)}
        if request.stream:
            return await self._stream(answer, request.include_usage, mail, choices, events, headers, send, timing)
        left = len(choices)
        while True:
            for index, event in events:
                if isinstance(event, Failed):
                    raise event.error
                _note_first(event, timing)
                choices[index].add(event)
                left -= choices[index].finished is event
            if not left:
                break
            events = await mail.take()
        body = answer.whole([choice.whole() for choice in choices], usage_of(choices))
        await send_json(send, 200, body, headers)
        return "200"

    async def _stream(
        self,
        answer: Answer,
        include_usage: bool,
        mail: Mail,
        choices: list[Choice],
        events: list[tuple[int, Event]],
        headers: dict[str, str],
        send: Send,
        timing: Timing,
    ) -> str:
        writer = answer.chunks(include_usage=include_usage)
        await send_head(send, 200, {"content-type": sse.CONTENT_TYPE, **sse.HEADERS, **headers})
        out = [choice.opening(writer) for choice in choices]
        left = len(choices)
        while True:
            for index, event in events:
                if isinstance(event, Failed):
                    await send_bytes(send, b"".join([*out, sse.error_event(event.error)]), more=False)
                    return f"stream_{event.error.status}"
                _note_first(event, timing)
                out.append(choices[index].stream(writer, event))
                left -= choices[index].finished is event
            if not left:
                break
            if piece := b"".join(out):
                await send_bytes(send, piece, more=True)
            try:
                events = await mail.take(QUIET_S)
            except RouterError as error:
                await send_bytes(send, sse.error_event(error), more=False)
                return f"stream_{error.status}"
            out = [] if events else [KEEP_ALIVE]
        if include_usage:
            out.append(writer.usage(usage_of(choices)))
        await send_bytes(send, b"".join([*out, sse.DONE]), more=False)
        return "200"

    def _record(self, scope: Scope, adapter: str, status: str, choices: list[Choice], timing: Timing) -> None:
        total_s = time.perf_counter() - timing.arrived
        first_ms = (timing.first_token - timing.arrived) * 1000 if timing.first_token is not None else -1.0
        usage = usage_of(choices)
        metrics = self._specialist.metrics
        metrics.requests.labels(adapter, status).inc()
        metrics.duration.observe(total_s)
        if timing.first_token is not None:
            metrics.first_token.observe(first_ms / 1000)
        log.info(
            "request=%s adapter=%s status=%s prompt=%d cached=%d completion=%d first_ms=%.1f total_ms=%.1f",
            scope.get("request_id"),
            adapter,
            status,
            usage.prompt,
            usage.cached,
            usage.completion,
            first_ms,
            total_s * 1000,
        )


async def _watch(receive: Receive, mail: Mail) -> None:
    await disconnected(receive)
    mail.client_left()


def _note_first(event: Event, timing: Timing) -> None:
    if timing.first_token is None and isinstance(event, Delta):
        timing.first_token = time.perf_counter()


def _digest(events: list[tuple[int, Event]]) -> str:
    """The adapter version of an answer, from its first event. Raises what ended it before it began."""
    for _, event in events:
        if isinstance(event, Started):
            return event.digest
        if isinstance(event, Failed):
            raise event.error
    return "unknown"


def _logprobs(request: SamplingBody) -> int | None:
    """How many alternatives a token; None for no log-probabilities."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None


def _echo(request: SamplingBody, number: int) -> str:
    """What a completion's text begins with."""
    if not isinstance(request, CompletionRequest) or not request.echo:
        return ""
    prompt = request.prompts[number]
    return prompt if isinstance(prompt, str) else ""

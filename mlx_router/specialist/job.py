"""What travels between asyncio and the model thread: plain, frozen data; no arrays, no callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_router.errors import RouterError
from mlx_router.protocol.chunks import TokenLogprob

TextState = str  # "raw", "normal", "reasoning", or a state of the base's own response format
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a row's next token is drawn. The defaults are greedy and change nothing."""

    temperature: float = 0.0  # 0: the most likely token
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer
    frequency_penalty: float = 0.0  # over the answer
    seed: int | None = None  # the same seed and prompt give the same answer, whatever else is in the batch
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to generate: a request with n = 3 is three jobs."""

    id: str
    request: str = ""  # jobs that share it are answered by one adapter version
    adapter: str | None  # None: the base
    prompt: tuple[int, ...]  # token ids, at least one
    max_tokens: int
    deadline_s: float  # on the monotonic clock
    budget_s: float = 0.0  # from its arrival to the deadline
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    logprobs: int | None = None  # alternatives a token; None: no log-probabilities at all
    text_state: TextState = "raw"  # raw: no reasoning, no tools, everything is text
    tools: tuple[Mapping[str, Any], ...] = ()  # as the chat template got them; empty: calls are not parsed
    boundaries: tuple[int, ...] = ()  # prompt positions whose state is worth keeping, ascending

    def same_prompt(self, other: Job) -> bool:
        """Whether both are choices of one prompt."""
        return self.request == other.request != "" and (self.prompt is other.prompt or self.prompt == other.prompt)


@dataclass(frozen=True, slots=True)
class Started:
    """The job left the queue and holds a lease on this adapter version."""

    digest: str  # sha256:… or "base"
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one token (or a few) added."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tool_calls or self.logprobs)


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is done."""

    reason: FinishReason
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without an answer, or in the middle of one."""

    error: RouterError


Event = Started | Delta | Finished | Failed

"""Answers of OpenAI's API: whole completions, stream chunks, usage, the model list."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer."""

    prompt: int
    completion: int
    cached: int = 0  # prompt tokens that were not computed again
    reasoning: int = 0  # completion tokens inside the reasoning part

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability and its alternatives."""

    token: str
    raw: bytes  # the token's own bytes: half a character is possible here, and only here
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "logprob": self.logprob,
            "bytes": list(self.raw),
            "top_logprobs": [
                {"token": token, "logprob": logprob, "bytes": list(raw)} for token, raw, logprob in self.top
            ],
        }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    return {"content": [token.to_json() for token in tokens], "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; `offset`: characters of text before the first token."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {text: logprob for text, _, logprob in reversed(token.top)} | {token.token: token.logprob}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def tool_call(name: str, arguments: str, *, call_id: str | None = None, index: int | None = None) -> dict[str, Any]:
    """One tool call; `index` only in streams."""
    call: dict[str, Any] = {
        "id": call_id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return call if index is None else {"index": index, **call}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The fields that every part of one answer shares."""

    id: str  # chatcmpl-… or cmpl-…
    created: int  # Unix time, s
    model: str
    fingerprint: str
    chat: bool = True

    def head(self, *, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return {**self.head(stream=False), "choices": list(choices), "usage": usage.to_json()}

    def chunks(self, *, include_usage: bool) -> ChunkWriter:
        """A writer of this answer's stream."""
        return ChunkWriter(self, include_usage=include_usage)


class ChunkWriter:
    """Serialise a stream's events; the part that never changes is encoded once."""

    def __init__(self, answer: Answer, *, include_usage: bool) -> None:
        head = json.dumps(answer.head(stream=True), ensure_ascii=False, separators=(",", ":"))
        self._head = f'data: {head[:-1]},"choices":['
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._answer = answer

    def choice(
        self,
        index: int,
        payload: Mapping[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> bytes:
        """One event: `payload` is the delta of a chat, or {"text": …} of a completion."""
        choice: dict[str, Any] = {"index": index}
        if self._answer.chat:
            choice["delta"] = payload
        else:
            choice.update(payload)
        choice["logprobs"] = logprobs
        choice["finish_reason"] = finish_reason
        body = json.dumps(choice, ensure_ascii=False, separators=(",", ":"))
        return f"{self._head}{body}{self._tail}".encode()

    def usage(self, usage: Usage) -> bytes:
        """The last event before [DONE] where the client asked for it."""
        body = {**self._answer.head(stream=True), "choices": [], "usage": usage.to_json()}
        return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_entry(
    name: str,
    *,
    created: int,
    owned_by: str = "mlx-router",
    parent: str | None = None,
    root: str | None = None,
) -> dict[str, Any]:
    """One entry of GET /v1/models: an adapter has its base as `parent` and its files as `root`."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owned_by,
        "parent": parent,
        "root": root or name,
    }


def model_list(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of GET /v1/models."""
    return {"object": "list", "data": list(entries)}

"""What a client has got so far of each choice of an answer, and how it is put into OpenAI's words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlx_router.protocol.chunks import (
    ChunkWriter,
    TokenLogprob,
    Usage,
    chat_logprobs,
    completion_logprobs,
    tool_call,
)
from mlx_router.specialist.job import Delta, Event, Finished, Started, ToolCall


@dataclass(slots=True)
class Choice:
    """One choice."""

    index: int
    chat: bool
    prompt_tokens: int  # 0 for every choice of a prompt but its first: a prompt is paid once
    wants_logprobs: bool
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Collect an event for an answer in one piece."""
        if isinstance(event, Delta):
            self.text += event.text
            self.reasoning += event.reasoning
            self.calls += event.tool_calls
            self.logprobs += event.logprobs
        else:
            self.note(event)

    def note(self, event: Event) -> None:
        """What is counted, streamed or not."""
        if isinstance(event, Started):
            self.cached = event.cached_tokens if self.prompt_tokens else 0
        elif isinstance(event, Finished):
            self.finished = event

    def whole(self) -> dict[str, Any]:
        """The choice in an answer that is not streamed."""
        reason = self.finished.reason if self.finished is not None else None
        if not self.chat:
            logprobs = completion_logprobs(self.logprobs) if self.wants_logprobs else None
            return {"index": self.index, "text": self.text, "logprobs": logprobs, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["content"] = self.text or None
            message["tool_calls"] = [tool_call(call.name, call.arguments) for call in self.calls]
        return {
            "index": self.index,
            "message": message,
            "logprobs": chat_logprobs(self.logprobs) if self.wants_logprobs else None,
            "finish_reason": reason,
        }

    def opening(self, writer: ChunkWriter) -> bytes:
        """The first event of a streamed choice."""
        if self.chat:
            return writer.choice(self.index, {"role": "assistant", "content": ""})
        return writer.choice(self.index, {"text": self.text}) if self.text else b""

    def stream(self, writer: ChunkWriter, event: Event) -> bytes:
        """The events that `event` becomes; nothing for those that only count."""
        self.note(event)
        if isinstance(event, Finished):
            return writer.choice(self.index, {} if self.chat else {"text": ""}, finish_reason=event.reason)
        if not isinstance(event, Delta):
            return b""
        if not self.chat:
            self.text += event.text
            offset = len(self.text) - len(event.text)
            logprobs = completion_logprobs(event.logprobs, offset) if event.logprobs else None
            return writer.choice(self.index, {"text": event.text}, logprobs=logprobs)
        payload: dict[str, Any] = {}
        if event.reasoning:
            payload["reasoning_content"] = event.reasoning
        if event.text:
            payload["content"] = event.text
        if event.tool_calls:
            payload["tool_calls"] = [
                tool_call(call.name, call.arguments, index=len(self.calls) + position)
                for position, call in enumerate(event.tool_calls)
            ]
            self.calls += event.tool_calls
        return writer.choice(self.index, payload, logprobs=chat_logprobs(event.logprobs) if event.logprobs else None)


def usage_of(choices: list[Choice]) -> Usage:
    """The tokens of a whole answer."""
    done: Iterator[Finished] = (choice.finished for choice in choices if choice.finished is not None)
    finished = list(done)
    return Usage(
        prompt=sum(choice.prompt_tokens for choice in choices),
        completion=sum(item.completion_tokens for item in finished),
        cached=sum(choice.cached for choice in choices),
        reasoning=sum(item.reasoning_tokens for item in finished),
    )

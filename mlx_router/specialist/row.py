"""One running sequence: its tokens become text, reasoning and tool calls; policy of what a client sees."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from mlx_router.lora.bank import Lease
from mlx_router.protocol.chunks import TokenLogprob
from mlx_router.specialist.generation import Markers, TextMachine, make_text_machine, markers, parse_tool_text
from mlx_router.specialist.job import Delta, Finished, FinishReason, Job, ToolCall
from mlx_router.specialist.text import Detokenizer, StopStrings, Vocabulary

log = logging.getLogger(__name__)


class Texts:
    """What all rows of one base share: vocabulary, markers, state machines."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.markers: Markers = markers(tokenizer)
        known = [*(self.markers.reasoning or ()), *(self.markers.tools or ())]
        self.vocabulary = Vocabulary(
            tokenizer.backend_tokenizer, fallback=lambda: tokenizer.detokenizer, keep=frozenset(known)
        )
        self._machines = {tools: make_text_machine(tokenizer, tools=tools) for tools in (False, True)}

    def machine(self, *, tools: bool) -> TextMachine:
        return self._machines[tools]


class RowText:
    """The text side of one row: feed tokens, get deltas."""

    def __init__(self, job: Job, texts: Texts) -> None:
        self._job = job
        self._texts = texts
        self._detokenizer: Detokenizer = texts.vocabulary.detokenizer()
        self._stops = StopStrings(job.stops)
        self._raw = job.text_state == "raw"
        if not self._raw:
            self._machine = texts.machine(tools=bool(job.tools))
            self._state = self._machine.make_state(job.text_state)
        self._mode: str = job.text_state
        self._tool_text = ""
        self._section_start = True  # nothing of this section has been emitted yet
        self._sections = 0  # reasoning and tool sections that came before the text
        self._called = False
        self._logprobs: list[TokenLogprob] = []
        self._reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stops.stopped

    def add(self, token: int, logprob: TokenLogprob | None) -> Delta:
        """One token. The delta is empty while text is held back."""
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._mode == "reasoning":
            self._reasoning_tokens += 1
        return self._deliver(self._split(self._stops.add(self._detokenizer.add(token))))

    def finish(self, reason: FinishReason, produced: int) -> tuple[Delta, Finished]:
        """What was held back, and the end."""
        segments: list[tuple[str, str]] = []
        if not self._stops.stopped:
            tail = self._stops.add(self._detokenizer.finish())
            segments += self._split(tail + self._stops.finish())
        if not self._raw:
            self._state, held, mode = self._machine.flush(self._state)
            segments.append((mode, held))
        delta = self._deliver(segments, last=True)
        if self._called and reason == "stop":
            reason = "tool_calls"
        return delta, Finished(reason, produced, self._reasoning_tokens)

    def _split(self, text: str) -> list[tuple[str, str]]:
        if self._raw:
            return [("normal", text)]
        self._state, segments = self._machine.split(self._state, text)
        return list(segments)

    def _deliver(self, segments: list[tuple[str, str]], *, last: bool = False) -> Delta:
        out = {"normal": "", "reasoning": ""}
        calls: list[ToolCall] = []
        for mode, text in segments:
            if mode != self._mode:
                if self._mode == "tool":
                    out["normal"] += self._end_tool(calls)
                self._sections += self._mode in ("reasoning", "tool")
                self._mode, self._section_start = mode, True
            if mode == "tool":
                self._tool_text += text
            else:  # states of a response format that are neither are text
                part = mode if mode in out else "normal"
                out[part] += self._trim(part, text)
        if last and self._mode == "tool" and self._tool_text:
            out["normal"] += self._end_tool(calls)
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._logprobs and (last or out["normal"] or out["reasoning"] or calls):
            logprobs, self._logprobs = tuple(self._logprobs), []
        return Delta(text=out["normal"], reasoning=out["reasoning"], tool_calls=tuple(calls), logprobs=logprobs)

    def _trim(self, mode: str, text: str) -> str:
        """Templates put line breaks around their markers; a section begins with its first word."""
        if self._raw or not self._section_start or (mode == "normal" and not self._sections):
            return text
        text = text.lstrip("\n") if mode == "reasoning" else text.lstrip()
        self._section_start = not text
        return text

    def _end_tool(self, calls: list[ToolCall]) -> str:
        """Parse the tool section that ended. One that is no call is shown as text rather than lost."""
        text, self._tool_text = self._tool_text, ""
        try:
            parsed = parse_tool_text(self._texts.tokenizer, text, self._job.tools)
        except ValueError as error:
            log.info("job=%s tool_call=unparsed reason=%r", self._job.id, str(error))
            start, end = self._texts.markers.tools or ("", "")
            return f"{start}{text}{end}"
        for call in parsed:
            arguments = call.get("arguments")
            if not isinstance(arguments, str):
                arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
            calls.append(ToolCall(call["name"], arguments))
        self._called = True
        return ""


@dataclass(slots=True, eq=False)
class Row:
    """A job that holds a lease and runs in the batch."""

    job: Job
    lease: Lease
    text: RowText
    cached_tokens: int
    produced: list[int] = field(default_factory=list)
    uid: int = -1  # in the batch; -1: not there
    prefilling: bool = True
    uncomputed: int = 0  # tokens that the last state taken of it lacks; at least one, the last
    replays: int = 0  # times that it was inserted again after the batch had failed

    @property
    def digest(self) -> str:
        return self.lease.digest

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.job.prompt, *self.produced]

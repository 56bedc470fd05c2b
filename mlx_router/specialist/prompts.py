"""Requests to jobs: chat templates, token ids, limits. On a thread of its own, since templates take milliseconds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from mlx_router.errors import ContextLengthExceeded, InvalidRequest
from mlx_router.protocol.requests import ChatRequest, CompletionRequest, Message, NamedTool, SamplingBody
from mlx_router.specialist.job import Job, Sampling, TextState
from mlx_router.specialist.loading import Base

RESERVED = frozenset(  # arguments of the tokenizer itself, among them a template of the client's own
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "kwargs",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    ]
)
LONG = 8  # characters for each token of the context, above which a text is counted in pieces first
PIECE = 8192  # characters
SEAM_TOKENS = 8
OPENING_TOKENS = 11  # that a template adds behind the last turn at most; mlx-lm's server looks at as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One prompt, ready to be queued."""

    tokens: tuple[int, ...]
    text_state: TextState
    tools: tuple[Mapping[str, Any], ...] = ()
    boundaries: tuple[int, ...] = ()


class Prompts:
    """The tokenizer's side of one base. One thread."""

    def __init__(self, base: Base, *, default_max_tokens: int, timeout_s: float) -> None:
        self._base = base
        self._tokenizer = base.tokenizer
        self._default_max_tokens = default_max_tokens
        self._timeout_s = timeout_s

    def chat(self, request: ChatRequest) -> Prepared:
        """Render a conversation. Raises InvalidRequest for what the template refuses, and ContextLengthExceeded."""
        if request.response_format is not None and request.response_format.type != "text":
            raise InvalidRequest(
                f"response_format {request.response_format.type!r} is not supported, only 'text'",
                param="response_format",
            )
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest("the base model has no chat template; /v1/completions takes plain prompts")
        messages = [_plain(index, message) for index, message in enumerate(request.messages)]
        tools = _tools(request)
        options = _options(request.chat_template_kwargs or {})
        tokens = self._render(messages, tools, options, add_generation_prompt=True)
        fits = len(tokens) < self._base.max_context
        return Prepared(
            tokens=tuple(tokens),
            text_state=self._text_state(tokens),
            tools=tuple(tools),
            boundaries=self._boundaries(messages, tools, options, tokens) if fits else (),
        )

    def completion(self, request: CompletionRequest) -> list[Prepared]:
        """Tokens of each prompt. Raises InvalidRequest and ContextLengthExceeded."""
        prepared = []
        for index, prompt in enumerate(request.prompts):
            if isinstance(prompt, str):
                tokens = self._encode(prompt, special=True, param="prompt")
            else:
                tokens = list(prompt)
                bad = [token for token in tokens if not 0 <= token < self._base.vocab_size]
                if bad:
                    raise InvalidRequest(
                        f"prompt[{index}]: token {bad[0]} is not in [0, {self._base.vocab_size})", param="prompt"
                    )
            if not tokens:
                raise InvalidRequest(f"prompt[{index}] has no tokens", param="prompt")
            prepared.append(Prepared(tokens=tuple(tokens), text_state="raw"))
        return prepared

    def jobs(
        self,
        prepared: Prepared,
        request: SamplingBody,
        *,
        request_id: str,
        ids: Sequence[str],
        adapter: str | None,
        limit: int | None,
        logprobs: int | None,
    ) -> list[Job]:
        """One job a choice, of the same prompt. Raises ContextLengthExceeded, with the numbers."""
        used, room = len(prepared.tokens), self._base.max_context - len(prepared.tokens)
        if room < 1 or (limit is not None and limit > room):
            asked = f" and {limit} for the answer" if limit is not None else ""
            raise ContextLengthExceeded(
                f"the context has {self._base.max_context} tokens; {used} are in the prompt{asked}"
                f" ({used + (limit or 1)} in all)",
                param="max_tokens" if room >= 1 else "messages",
            )
        sampling = self._sampling(request)
        now = time.monotonic()
        return [
            Job(
                id=job_id,
                request=request_id,
                adapter=adapter,
                prompt=prepared.tokens,
                max_tokens=limit if limit is not None else min(room, self._default_max_tokens),
                deadline_s=now + self._timeout_s,
                budget_s=self._timeout_s,
                sampling=sampling if index == 0 else _reseeded(sampling, index),
                stops=request.stops,
                logprobs=logprobs,
                text_state=prepared.text_state,
                tools=prepared.tools,
                boundaries=prepared.boundaries,
            )
            for index, job_id in enumerate(ids)
        ]

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        options: dict[str, Any],
        *,
        add_generation_prompt: bool,
    ) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=add_generation_prompt, tokenize=False, **options
            )
        except TemplateError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InvalidRequest(
                f"the chat template refuses the messages: {reason[0][:300]}", param="messages"
            ) from error
        except Exception as error:  # a template meets what its author did not think of
            raise InvalidRequest(
                f"the chat template fails on the messages ({type(error).__name__})", param="messages"
            ) from error
        tokens = self._encode(text, special=False, param="messages")  # the template writes special tokens itself
        if not tokens:
            raise InvalidRequest("the chat template makes no tokens of the messages", param="messages")
        return tokens

    def _encode(self, text: str, *, special: bool, param: str) -> list[int]:
        """The tokens of a text. Raises ContextLengthExceeded for one that cannot fit, before it is read to its end.

        Encoding takes a second for a megabyte, and others wait. Pieces have at most SEAM_TOKENS more than the whole.
        """
        limit, least = self._base.max_context, 0
        if len(text) > LONG * limit:
            for start in range(0, len(text), PIECE):
                piece = self._tokenizer.encode(text[start : start + PIECE], add_special_tokens=False)
                least += max(0, len(piece) - SEAM_TOKENS)
                if least > limit:
                    message = f"the context has {limit} tokens; more than {least} are in the prompt"
                    raise ContextLengthExceeded(message, param=param)
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=special)]

    def _text_state(self, tokens: list[int]) -> TextState:
        """Templates may open the reasoning part themselves; response formats may begin in a state of their own.

        What a template opens stands behind the last turn: within OPENING_TOKENS, and after that turn's end.
        """
        tokenizer = self._tokenizer
        if tokenizer.response_initial_state:
            return str(tokenizer.response_initial_state)
        if not tokenizer.has_thinking:
            return "normal"
        opening = tokens[-OPENING_TOKENS:]
        ends = [index for index, token in enumerate(opening) if token in self._base.eos]
        opening = opening[ends[-1] + 1 :] if ends else opening
        opened = tokenizer.rfind_think_start(opening) > tokenizer.rfind_think_end(opening)
        return "reasoning" if opened else "normal"

    def _boundaries(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        options: dict[str, Any],
        tokens: list[int],
    ) -> tuple[int, ...]:
        """Where prompts to come will agree with this one; of use where states cannot be cut.

        Other conversations share what stands before the first turn: found with a turn that begins otherwise, since
        templates may refuse a system prompt alone. The next turn's prompt shares what ends before the answer.
        """
        if self._base.states_can_be_cut:
            return ()
        system = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
        alike = [messages]
        if (system or tools) and system < len(messages):
            other = "x" if not messages[system]["content"].lstrip().startswith("x") else "y"
            alike.append([*messages[:system], {"role": "user", "content": other}])
        cuts: set[int] = set()
        for part in alike:
            try:
                rendered = self._render(part, tools, options, add_generation_prompt=False)
            except InvalidRequest:  # a template of another mind
                continue
            cuts.add(_agreement(rendered, tokens))
        return tuple(sorted(cut for cut in cuts if 0 < cut < len(tokens)))

    def _sampling(self, request: SamplingBody) -> Sampling:
        defaults = self._base.defaults
        bias = tuple((int(token), value) for token, value in (request.logit_bias or {}).items())
        bad = [token for token, _ in bias if token >= self._base.vocab_size]
        if bad:
            raise InvalidRequest(
                f"logit_bias: token {bad[0]} is not in [0, {self._base.vocab_size})", param="logit_bias"
            )

        def either(value: float | None, name: str, otherwise: float) -> float:
            return float(value if value is not None else defaults.get(name, otherwise))

        return Sampling(
            temperature=either(request.temperature, "temperature", 0.0),
            top_p=either(request.top_p, "top_p", 1.0),
            top_k=max(0, int(either(request.top_k, "top_k", 0))),
            min_p=request.min_p or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            seed=request.seed,
            logit_bias=bias,
        )


def _reseeded(sampling: Sampling, index: int) -> Sampling:
    """The sampling of a further choice: another seed, where one was given."""
    if sampling.seed is None:
        return sampling
    fields = {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__}
    return Sampling(**(fields | {"seed": sampling.seed + index}))


def _plain(index: int, message: Message) -> dict[str, Any]:
    """A message as templates know it: text content, decoded tool arguments, no `developer` role."""
    if others := message.other_parts():
        raise InvalidRequest(f"messages[{index}]: {others[0]} parts are not supported, only text", param="messages")
    plain = {key: value for key, value in message.model_dump().items() if value is not None}
    plain["role"] = "system" if message.role == "developer" else message.role
    plain["content"] = message.text()
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                try:
                    function["arguments"] = json.loads(function["arguments"] or "{}")
                except ValueError:
                    raise InvalidRequest(
                        f"messages[{index}].tool_calls: arguments are not JSON", param="messages"
                    ) from None
    return plain


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Switches of the template, such as enable_thinking."""
    if reserved := sorted(RESERVED & options.keys()):
        raise InvalidRequest(f"{', '.join(reserved)} cannot be set here", param="chat_template_kwargs")
    for name, value in options.items():
        if not name.isidentifier() or not isinstance(value, bool | int | float | str | None):
            raise InvalidRequest(f"{name[:50]!r} is not a plain switch", param="chat_template_kwargs")
    return dict(options)


def _tools(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the model gets to see."""
    if request.tool_choice == "none":
        return []
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []]
    if isinstance(request.tool_choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == request.tool_choice.function.name]
    return tools


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

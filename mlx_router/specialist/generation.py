"""Every use of mlx-lm's generation, in one place: mlx-lm 0.32.2, whose internals move with each release.

All of it belongs to the model thread, except `markers` and `make_text_machine`, which touch no arrays.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_router.compute import mx, nn
from mlx_router.specialist.job import Sampling

# By name and untyped: mlx-lm's annotations are partial, and `mlx_lm.generate` is also a function of its package.
_generate: Any = importlib.import_module("mlx_lm.generate")
_cache: Any = importlib.import_module("mlx_lm.models.cache")
_sample: Any = importlib.import_module("mlx_lm.sample_utils")

TextMachine = Any  # mlx-lm's TextStateMachine
WHOLE_CONTEXT = 2**30  # tokens that a penalty looks back over; mlx-lm's default is 20
Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]


@contextmanager
def _wired_limit_untouched() -> Iterator[None]:
    """BatchGenerator raises Metal's wired limit when it is made, which has crashed macOS under load."""
    original = _generate.maybe_set_recommended_wired_limit
    _generate.maybe_set_recommended_wired_limit = lambda: None
    try:
        yield
    finally:
        _generate.maybe_set_recommended_wired_limit = original


@dataclass(frozen=True, slots=True)
class Progress:
    """One row's prompt moved on."""

    uid: int
    boundary: bool  # the state is that of one of the row's boundaries
    prefilled: bool  # the prompt is complete


@dataclass(frozen=True, slots=True)
class Produced:
    """One row's next token. `state` and `tokens` come with the last one: what the prompt cache may keep."""

    uid: int
    token: int
    logprobs: mx.array  # (V,), natural log
    last: str | None  # "stop": an end-of-text token; "length"
    state: list[Any] | None
    tokens: list[int] | None


class Batch:
    """A running batch: rows with different adapters, samplers and lengths come and go between steps."""

    def __init__(
        self, model: nn.Module, *, eos: Sequence[int], max_rows: int, prefill_rows: int, prefill_step: int
    ) -> None:
        with _wired_limit_untouched():
            self._generator = _generate.BatchGenerator(
                model,
                completion_batch_size=max_rows,
                prefill_batch_size=min(prefill_rows, max_rows),
                prefill_step_size=prefill_step,
                stream=mx.default_stream(mx.default_device()),
            )
        self._stop = _generate.StopSequences([(token,) for token in eos])
        self._max_rows = self._generator.completion_batch_size

    def insert(
        self,
        tokens: Sequence[int],
        *,
        state: list[Any],
        cached: Sequence[int],
        max_tokens: int,
        sampler: Sampler,
        processors: Sequence[Processor],
        boundaries: Sequence[int] = (),
    ) -> int:
        """Add a row; its uid. `state` holds `cached`; `tokens`, at least one, follow; `boundaries` index them."""
        cuts = [0, *sorted({cut for cut in boundaries if 0 < cut < len(tokens)}), len(tokens)]
        segments = [list(tokens[a:b]) for a, b in itertools.pairwise(cuts)]
        (uid,) = self._generator.insert_segments(
            [segments],
            max_tokens=[max_tokens],
            caches=[state],
            all_tokens=[list(cached)],
            samplers=[sampler],
            logits_processors=[list(processors)],
            stop_sequences=[self._stop],
        )
        return int(uid)

    def step(self, *, decode_only: bool) -> tuple[list[Progress], list[Produced]]:
        """One decode step for the running rows and, unless `decode_only`, one chunk of the prompts."""
        # A generator whose batch is "full" decodes and leaves prompts alone.
        self._generator.completion_batch_size = 1 if decode_only else self._max_rows
        prompts, tokens = self._generator.next()
        progress = [
            Progress(r.uid, bool(r.end_of_segment and not r.end_of_prompt), bool(r.end_of_prompt)) for r in prompts
        ]
        produced = [
            Produced(r.uid, int(r.token), r.logprobs, r.finish_reason, r.prompt_cache, r.all_tokens) for r in tokens
        ]
        return progress, produced

    def state_of(self, uid: int) -> tuple[list[Any], list[int]] | None:
        """A copy of one row's state and the tokens in it."""
        found: dict[int, tuple[list[Any], list[int]]] = self._generator.extract_cache([uid])
        return found.get(uid)

    def remove(self, uids: Sequence[int]) -> None:
        """Take rows out; the others go on."""
        self._generator.remove(list(uids))

    def __len__(self) -> int:
        """Rows in it, prefilling ones included."""
        generator = self._generator
        parts = (generator._generation_batch, generator._prompt_batch, generator._unprocessed_sequences)
        return sum(len(part) for part in parts)

    @property
    def nbytes(self) -> int:
        """Memory of the running rows' states."""
        return int(self._generator.prompt_cache_nbytes)


class ModelStates:
    """What the prompt cache must know of mlx-lm's cache objects."""

    def nbytes(self, state: Any) -> int:
        return sum(int(part.nbytes) for part in state)

    def can_trim(self, state: Any) -> bool:
        return bool(_cache.can_trim_prompt_cache(state))

    def copy(self, state: Any) -> Any:
        return copy.deepcopy(state)

    def trim(self, state: Any, count: int) -> None:
        _cache.trim_prompt_cache(state, count)

    def compute(self, state: Any) -> None:
        """Evaluate the arrays, so that they hold nothing of the batch that they were taken from."""
        for part in _flat(state):
            if isinstance(part, _cache.ArraysCache):  # extracts a view of all rows; the others extract copies
                part.cache = [None if array is None else mx.contiguous(array) for array in part.cache]
        mx.eval([part.state for part in state])


def _flat(parts: Iterable[Any]) -> Iterator[Any]:
    """Caches, and those in lists of caches."""
    for part in parts:
        yield from _flat(part.caches) if isinstance(part, _cache.CacheList) else (part,)


def seed_generator() -> None:
    """Unseeded requests differ from one process to the next; mlx itself starts from 0."""
    mx.random.seed(int.from_bytes(os.urandom(7), "big"))


def clear_buffers() -> None:
    """Give mlx's unused buffers back to the system."""
    mx.clear_cache()


class Samplers:
    """Samplers by their parameters. Rows that share one are sampled in one call, whatever their adapters."""

    def __init__(self, vocab_size: int, *, limit: int = 64) -> None:
        self._vocab_size = vocab_size
        self._limit = limit
        self._shared: dict[tuple[float, float, int, float], Sampler] = {}

    def get(self, sampling: Sampling, *, produced: int = 0) -> Sampler:
        """The sampler of a row that has `produced` tokens already."""
        if sampling.temperature == 0.0 or sampling.top_k == 1:
            return _sample.greedy_sampler  # type: ignore[no-any-return]
        top_k = sampling.top_k if 0 < sampling.top_k < self._vocab_size else 0
        if sampling.seed is not None:
            return self._seeded(sampling, top_k, produced)
        key = (sampling.temperature, sampling.top_p, top_k, sampling.min_p)
        if key not in self._shared:
            if len(self._shared) >= self._limit:
                self._shared.clear()
            self._shared[key] = _sample.make_sampler(
                sampling.temperature, top_p=sampling.top_p, min_p=sampling.min_p, top_k=top_k
            )
        return self._shared[key]

    def _seeded(self, sampling: Sampling, top_k: int, produced: int) -> Sampler:
        position = produced
        seed = sampling.seed or 0

        def sample(logprobs: mx.array) -> mx.array:
            nonlocal position
            if 0.0 < sampling.top_p < 1.0:
                logprobs = _sample.apply_top_p(logprobs, sampling.top_p)
            if sampling.min_p > 0.0:
                logprobs = _sample.apply_min_p(logprobs, sampling.min_p)
            if top_k:
                logprobs = _sample.apply_top_k(logprobs, top_k)
            key = mx.random.key(mix(seed, position))
            position += 1
            return mx.random.categorical(logprobs * (1.0 / sampling.temperature), key=key)

        return sample


def mix(seed: int, position: int) -> int:
    """A 64-bit key from a seed and a position in the answer (splitmix64), independent of other rows."""
    value = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def make_processors(sampling: Sampling, prompt_tokens: int) -> list[Processor]:
    """Bias and penalties. Repetition looks at prompt and answer, presence and frequency at the answer."""
    processors: list[Processor] = _sample.make_logits_processors(
        logit_bias=dict(sampling.logit_bias) or None,
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1.0 else None,
        repetition_context_size=WHOLE_CONTEXT,
    )
    answer_only: list[Processor] = _sample.make_logits_processors(
        presence_penalty=sampling.presence_penalty or None,
        presence_context_size=WHOLE_CONTEXT,
        frequency_penalty=sampling.frequency_penalty or None,
        frequency_context_size=WHOLE_CONTEXT,
    )

    def on_answer(processor: Processor) -> Processor:
        return lambda tokens, logits: processor(tokens[prompt_tokens:], logits)

    return processors + [on_answer(processor) for processor in answer_only]


def top_logprobs(logprobs: mx.array, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The token's log-probability and the `count` best (token, log-probability), best first.

    The row is computed already; numpy reads it without waiting for the step that is under way.
    """
    if logprobs.dtype != mx.float32:
        logprobs = logprobs.astype(mx.float32)
    values = np.asarray(logprobs)
    chosen = float(values[token])
    count = min(count, len(values))
    if not count:
        return _finite(chosen), []
    best = np.argpartition(values, len(values) - count)[len(values) - count :]
    best = best[np.argsort(-values[best], kind="stable")]
    return _finite(chosen), [(int(index), _finite(float(values[index]))) for index in best]


def _finite(value: float) -> float:
    return max(value, -9999.0)  # OpenAI's stand-in for "impossible"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Markers:
    """What a tokenizer knows of reasoning and tool calls."""

    reasoning: tuple[str, str] | None
    tools: tuple[str, str] | None


def markers(tokenizer: Any) -> Markers:
    """The markers of mlx-lm's tokenizer wrapper."""
    return Markers(
        (tokenizer.think_start, tokenizer.think_end) if tokenizer.has_thinking else None,
        (tokenizer.tool_call_start, tokenizer.tool_call_end or "") if tokenizer.has_tool_calling else None,
    )


class _WithoutTools:
    """A tokenizer whose answers have no tool calls, for requests that offer none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    has_tool_calling = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def make_text_machine(tokenizer: Any, *, tools: bool) -> TextMachine:
    """Splits text into the states normal, reasoning and tool, without the markers between them."""
    return _generate.make_text_state_machine(tokenizer if tools else _WithoutTools(tokenizer))


def parse_tool_text(tokenizer: Any, text: str, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls in the text between two markers: [{"name", "arguments"}, …]. Else ValueError."""
    try:
        parsed = tokenizer.tool_parser(text, [dict(tool) for tool in tools])
    except Exception as error:  # mlx-lm's parsers raise what their input makes them raise
        raise ValueError(f"{type(error).__name__}: {error}") from error
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError("a tool call without a name")
    return calls


def eos_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer."""
    return tuple(sorted(int(token) for token in tokenizer.eos_token_ids))


def states_can_be_cut(model: nn.Module) -> bool:
    """Whether the model's states can be cut back to a prefix: attention caches can, recurrent states cannot."""
    return bool(_cache.can_trim_prompt_cache(_cache.make_prompt_cache(model)))

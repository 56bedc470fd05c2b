"""The engine without its thread: jobs in, events out, one step at a time.

    waiting ──start──> running ──last token──> gone
       │                  │
       └──cancel, time-out, failure───────────> gone

A job is bound to one adapter version when it starts: it takes a lease, and keeps it to its end. So are the waiting
jobs of the same request, in the same moment. Replacing or unloading an adapter changes what later requests get, never
one that has begun. Everything here runs on one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from mlx_router.errors import EngineUnavailable, RequestTimeout, RouterError, SlotsBusy
from mlx_router.lora.bank import AdapterBank, Lease
from mlx_router.protocol.chunks import TokenLogprob
from mlx_router.specialist.counters import Counters, Snapshot
from mlx_router.specialist.generation import (
    Batch,
    ModelStates,
    Produced,
    Progress,
    Samplers,
    make_processors,
    top_logprobs,
)
from mlx_router.specialist.job import Event, Failed, Job, Started
from mlx_router.specialist.loading import Base
from mlx_router.specialist.prompt_cache import PromptCache
from mlx_router.specialist.residents import Residents
from mlx_router.specialist.row import Row, RowText, Texts
from mlx_router.specialist.scheduler import Pace, WaitingJobs

log = logging.getLogger(__name__)

MAX_REPLAYS = 3  # times that a row is computed again because the batch failed around it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes of the engine."""

    max_rows: int = 32  # decoded together
    prefill_rows: int = 8  # prefilled together
    prefill_step: int = 512  # tokens of one chunk
    prompt_cache_bytes: int = 2 * 2**30
    decode_share: float = 1.0  # seconds of decoding alone for each second of a prefill chunk


class EngineCore:
    """Rows, leases and caches. `emit` gets every event; `fetch` is of `Residents`."""

    def __init__(
        self,
        base: Base,
        bank: AdapterBank,
        *,
        limits: Limits,
        emit: Callable[[str, Event], None],
        fetch: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = base
        self.bank = bank
        self.texts = Texts(base.tokenizer)
        self.counters = Counters()
        self._limits = limits
        self._emit = emit
        self._clock = clock
        self._samplers = Samplers(base.vocab_size)
        self._states = ModelStates()
        self.prompt_cache = PromptCache(self._states, budget_bytes=limits.prompt_cache_bytes)
        self._bound: dict[str, Lease] = {}  # of waiting jobs whose request has begun, by their id
        self._waiting = WaitingJobs(
            long_tokens=limits.prefill_step, long_places=max(1, limits.prefill_rows // 2), bound=self._bound
        )
        self.residents = Residents(
            bank,
            self._waiting,
            fetch=fetch,
            fail=lambda job, error: emit(job.id, Failed(error)),
            purge=self._purge,
        )
        self._pace = Pace(share=limits.decode_share)
        self._rows: dict[int, Row] = {}  # by uid
        self._replay: list[Row] = []  # rows of a batch that failed, not yet inserted again
        self._trial: Row | None = None  # the one of them that is on its own trial
        self._batch = self._new_batch()

    def _new_batch(self) -> Batch:
        limits = self._limits
        return Batch(
            self.bank.wrapped,
            eos=self.base.eos,
            max_rows=limits.max_rows,
            prefill_rows=limits.prefill_rows,
            prefill_step=limits.prefill_step,
        )

    # jobs

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._rows or self._replay or len(self._waiting))

    @property
    def runnable(self) -> bool:
        """Whether `step` can move anything now; otherwise it waits for an adapter to be read."""
        if self._rows or self._replay:
            return True
        if not len(self._waiting):
            return False
        return self.residents.movable or self._waiting.startable(self.residents.usable)

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._waiting.add(job)

    def cancel(self, job_id: str) -> None:
        """Forget a job, before the next step; nothing is emitted."""
        if (job := self._waiting.remove(job_id)) is not None:
            self._unbind(job)
            self.residents.released()
            self.counters.cancelled += 1
            return
        row = self._row_of(job_id)
        if row is not None:
            self._leave(row)
            self.counters.cancelled += 1

    def fail_all(self, error: RouterError) -> None:
        """End every job."""
        for job in self._waiting.take_all(lambda _: True):
            self._unbind(job)
            self._emit(job.id, Failed(error))
        for row in [*self._rows.values(), *self._replay]:
            self._fail(row, error)

    def _purge(self, digest: str) -> None:
        self.prompt_cache.purge(digest)

    # one step

    def step(self) -> None:
        """Start what can start, compute one step, emit what came of it."""
        self._expire()
        self.residents.settle()
        if self._replay or self._trial is not None:
            self._replay_next()
        else:
            self._start_rows()
        if not self._rows:
            return
        prefilling = sum(row.prefilling for row in self._rows.values())
        decode_only = self._pace.decode_only(decoding=len(self._rows) - prefilling, prefilling=prefilling)
        began = time.perf_counter()
        try:
            progress, produced = self._batch.step(decode_only=decode_only)
        except Exception as error:  # anything that the model or mlx raises
            self._recover(error)
            return
        spent = time.perf_counter() - began
        self._pace.spent(spent, prefill=bool(prefilling) and not decode_only)
        self.counters.steps += 1
        self.counters.step_s += spent
        self.counters.decoded_rows += len(produced)
        for moved in progress:
            self._moved(moved)
        for made in produced:
            self._made(made)

    def _expire(self) -> None:
        now = self._clock()
        for job in self._waiting.take_all(lambda job: job.deadline_s <= now):
            error: RouterError = RequestTimeout("the request timed out in the queue", retry_after_s=5.0)
            if not self._unbind(job) and self.residents.waits_for_slot(job.adapter):
                error = SlotsBusy(f"no slot became free for adapter {job.adapter!r} in time", retry_after_s=5.0)
            self._emit(job.id, Failed(error))
            self.residents.released()
        for row in [row for row in self._all_rows() if row.job.deadline_s <= now]:
            self._fail(row, RequestTimeout(f"timed out after {len(row.produced)} tokens"))

    def _start_rows(self) -> None:
        limits = self._limits
        while len(self._rows) < limits.max_rows:
            prefilling = [row for row in self._rows.values() if row.prefilling]
            if len(prefilling) >= limits.prefill_rows:
                return
            long_running = sum(self._waiting.is_long(row.job) for row in prefilling)
            leading = [row.job for row in prefilling if row.uncomputed > 1 and limits.prompt_cache_bytes]
            job = self._waiting.next(long_running=long_running, usable=self.residents.usable, leading=leading)
            if job is None:
                return
            self._start(job)

    def _start(self, job: Job) -> None:
        lease = self._bound.pop(job.id, None)
        try:
            if lease is None:
                lease = self.residents.acquire(job.adapter)
                for sibling in self._waiting.siblings(job):
                    self._bound[sibling.id] = self.residents.acquire(job.adapter)
            row = Row(job, lease, RowText(job, self.texts), 0)
            self._insert(row)
        except RouterError as error:
            if lease is not None:
                lease.release()
            self._emit(job.id, Failed(error))
            return
        self.counters.started += 1
        self.counters.prompt_tokens += len(job.prompt)
        self.counters.cached_tokens += row.cached_tokens
        self._emit(job.id, Started(row.digest, row.cached_tokens))

    def _unbind(self, job: Job) -> bool:
        """Give back the lease of a job that will not start; whether it had one."""
        lease = self._bound.pop(job.id, None)
        if lease is not None:
            lease.release()
        return lease is not None

    def _insert(self, row: Row) -> None:
        """Put a row into the batch, on top of the longest state that is known for its tokens."""
        job, tokens = row.job, row.tokens
        found = self.prompt_cache.fetch(row.digest, tokens)
        state, cached = found if found is not None else (None, 0)
        if not row.produced:
            row.cached_tokens = cached
        state = self.bank.rebind(state, row.lease) if state is not None else self.bank.make_cache(row.lease)
        row.uid = self._batch.insert(
            tokens[cached:],
            state=state,
            cached=tokens[:cached],
            max_tokens=job.max_tokens - len(row.produced),
            sampler=self._samplers.get(job.sampling, produced=len(row.produced)),
            processors=make_processors(job.sampling, len(job.prompt)),
            boundaries=[cut - cached for cut in job.boundaries],
        )
        row.prefilling = True
        row.uncomputed = len(tokens) - cached
        self._rows[row.uid] = row

    def _moved(self, moved: Progress) -> None:
        row = self._rows.get(moved.uid)
        if row is None:
            return
        if moved.prefilled:
            row.prefilling = False
        elif moved.boundary:
            found = self._batch.state_of(moved.uid)
            if found is not None:
                row.uncomputed = len(row.tokens) - len(found[1])
                self._keep(row.digest, found[1], found[0])

    def _made(self, made: Produced) -> None:
        row = self._rows.get(made.uid)
        if row is None:
            return
        if self._trial is row:
            self._trial = None
        row.prefilling = False
        row.produced.append(made.token)
        self.counters.generated(row.job.adapter)
        try:
            self._deliver(row, made)
        except Exception as error:  # one row's text must not end the others
            log.exception("job=%s text failed", row.job.id)
            self._fail(row, EngineUnavailable(f"the answer could not be decoded: {type(error).__name__}"))

    def _deliver(self, row: Row, made: Produced) -> None:
        if made.last != "stop":  # an end-of-text token has no text
            logprob = self._logprob(row.job.logprobs, made) if row.job.logprobs is not None else None
            delta = row.text.add(made.token, logprob)
            if delta:
                self._emit(row.job.id, delta)
        if made.last is None and not row.text.stopped:
            return
        state, tokens = made.state, made.tokens
        if made.last is None and (found := self._batch.state_of(made.uid)) is not None:
            state, tokens = found
        delta, finished = row.text.finish(
            "stop" if row.text.stopped or made.last == "stop" else "length", len(row.produced)
        )
        if state is not None and tokens is not None:
            self._keep(row.digest, tokens, state)
        self._leave(row, in_batch=made.last is None)
        self.counters.finished += 1
        if delta:
            self._emit(row.job.id, delta)
        self._emit(row.job.id, finished)

    def _logprob(self, count: int, made: Produced) -> TokenLogprob:
        vocabulary = self.texts.vocabulary
        value, best = top_logprobs(made.logprobs, made.token, count)
        top = tuple((vocabulary.shown(token), vocabulary.raw(token), logprob) for token, logprob in best)
        return TokenLogprob(vocabulary.shown(made.token), vocabulary.raw(made.token), value, top)

    def _keep(self, digest: str, tokens: list[int], state: list[object]) -> None:
        if digest in self.residents.digests() and self.prompt_cache.wants(digest, tokens):
            self._states.compute(state)
            self.prompt_cache.store(digest, tokens, state)
            self.prompt_cache.shrink(self._limits.prompt_cache_bytes - self._batch.nbytes)

    # endings

    def _all_rows(self) -> list[Row]:
        return [*self._rows.values(), *self._replay]

    def _row_of(self, job_id: str) -> Row | None:
        return next((row for row in self._all_rows() if row.job.id == job_id), None)

    def _leave(self, row: Row, *, in_batch: bool = True) -> None:
        """Take a row out and give its lease back."""
        if self._rows.pop(row.uid, None) is not None and in_batch:
            self._batch.remove([row.uid])
        elif row in self._replay:
            self._replay.remove(row)
        if self._trial is row:
            self._trial = None
        row.lease.release()
        self.residents.released()

    def _fail(self, row: Row, error: RouterError) -> None:
        self._leave(row)
        self.counters.failed += 1
        self._emit(row.job.id, Failed(error))

    def _recover(self, error: Exception) -> None:
        """The batch cannot be trusted any more: make a new one and compute its rows again, one on trial at a time.

        A row that fails alone, or on trial, is the cause and ends; the others lose time only.
        """
        log.error("step failed rows=%d error=%r", len(self._rows), error, exc_info=error)
        self.counters.recoveries += 1
        rows, self._rows = list(self._rows.values()), {}
        culprit = rows[0] if len(rows) == 1 else self._trial
        self._trial = None
        self._batch = self._new_batch()
        reason = EngineUnavailable(f"the model failed on this request ({type(error).__name__})")
        for row in rows:
            row.uid = -1
            row.replays += 1
            self._replay.append(row)
            if row is culprit or row.replays > MAX_REPLAYS:
                self._fail(row, reason)

    def _replay_next(self) -> None:
        if self._trial is not None or not self._replay:
            return
        row = self._trial = self._replay.pop(0)
        try:
            self._insert(row)
        except RouterError as error:
            self._fail(row, error)

    # what is known from outside

    def snapshot(self) -> Snapshot:
        """Plain data for health, metrics and the admin endpoints."""
        return Snapshot(
            waiting=len(self._waiting),
            running=len(self._rows) + len(self._replay),
            bank=self.bank.stats(),
            counters=self.counters.copy(),
            state_bytes=self._batch.nbytes,
            cache_bytes=self.prompt_cache.nbytes,
            cache_entries=len(self.prompt_cache),
            cache_hits=self.prompt_cache.hits,
            cache_misses=self.prompt_cache.misses,
            cache_evictions=self.prompt_cache.evictions,
        )

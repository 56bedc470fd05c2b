"""An engine core that a test steps by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.load import read_adapter
from mlx_router.specialist.core import EngineCore, Limits
from mlx_router.specialist.job import Delta, Event, Failed, Finished, Job, Started
from mlx_router.specialist.loading import Base
from tests.tiny_models import open_model


def fresh(base: Base) -> Base:
    """The same base with a model that no bank has touched."""
    return replace(base, model=open_model(base.path))


@dataclass
class Driver:
    """An engine core that a test steps by hand, and everything that it said."""

    base: Base
    adapters: Path  # directories by name
    slots: int = 4  # besides the base's
    expert_slots: int = 4
    limits: Limits = field(default_factory=lambda: Limits(prefill_step=16, prompt_cache_bytes=2**26))
    events: list[tuple[str, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bank = AdapterBank(self.base.model, slots=self.slots + 1, max_rank=4, expert_slots=self.expert_slots)
        self.now = time.monotonic()
        self.core = EngineCore(
            self.base,
            self.bank,
            limits=self.limits,
            emit=lambda job_id, event: self.events.append((job_id, event)),
            fetch=self.fetch,
            clock=lambda: self.now,
        )

    def fetch(self, name: str) -> None:
        self.core.residents.arrived(name, read_adapter(self.adapters / name, name=name))

    def prompt(self, text: str = "hi") -> tuple[int, ...]:
        tokens = self.base.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        return tuple(tokens)

    def add(self, job_id: str, adapter: str | None = None, **changes: Any) -> Job:
        fields: dict[str, Any] = {
            "id": job_id,
            "adapter": adapter,
            "prompt": self.prompt(),
            "max_tokens": 24,
            "deadline_s": self.now + 60.0,
            "text_state": "normal",
        }
        job = Job(**(fields | changes))
        self.core.add(job)
        return job

    def drain(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.core.busy:
                return
            self.core.step()
        raise AssertionError("the engine does not come to rest")

    def of(self, job_id: str) -> list[Event]:
        return [event for name, event in self.events if name == job_id]

    def text(self, job_id: str) -> str:
        return "".join(event.text for event in self.of(job_id) if isinstance(event, Delta))

    def reasoning(self, job_id: str) -> str:
        return "".join(event.reasoning for event in self.of(job_id) if isinstance(event, Delta))

    def events_end(self, job_id: str) -> bool:
        """Whether the job is over."""
        events = self.of(job_id)
        return bool(events) and isinstance(events[-1], Finished | Failed)

    def end(self, job_id: str) -> Finished | Failed:
        last = self.of(job_id)[-1]
        assert isinstance(last, Finished | Failed)
        return last

    def reason(self, job_id: str) -> str:
        end = self.end(job_id)
        assert isinstance(end, Finished), end
        return end.reason

    def started(self, job_id: str) -> Started:
        return next(event for event in self.of(job_id) if isinstance(event, Started))

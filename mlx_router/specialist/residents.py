"""Which adapters are in slots, which are on their way, and who must make room; on the model thread.

absent ──a job waits──> fetching ──read──> arrived ──a slot is free──> resident
                                              │
                                     no slot: one resident adapter is held until its last row has left
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_router.errors import AdapterExists, ModelNotFound, RouterError, SlotsBusy
from mlx_router.lora.bank import AdapterBank, Lease
from mlx_router.lora.load import AdapterFiles
from mlx_router.specialist.job import Job
from mlx_router.specialist.scheduler import WaitingJobs

MAX_FETCHES = 4  # adapters being read from disk, or read and waiting for a slot, at once


@dataclass(frozen=True, slots=True)
class Installed:
    """What a load did."""

    digest: str
    previous: str | None  # digest of the version that it replaced


class Residents:
    """The bank, as the engine uses it. `fail(job, error)` ends a waiting job, `purge(digest)` forgets its states.

    `fetch(name)` starts reading an adapter and must lead to `arrived` or `missing`.
    """

    def __init__(
        self,
        bank: AdapterBank,
        waiting: WaitingJobs,
        *,
        fetch: Callable[[str], None],
        fail: Callable[[Job, RouterError], None],
        purge: Callable[[str], None],
    ) -> None:
        self._bank = bank
        self._waiting = waiting
        self._fetch = fetch
        self._fail = fail
        self._purge = purge
        self._fetching: dict[str, bool] = {}  # name -> whether what is being read is still wanted
        self._arrived: dict[str, AdapterFiles] = {}
        self._held: str | None = None
        self._changed = False  # a slot may have become free since the last look

    def acquire(self, adapter: str | None) -> Lease:
        """A lease on the version that `adapter` has now; None is the base."""
        return self._bank.acquire(self._bank.find(adapter) if adapter is not None else None)

    def install(self, name: str, files: AdapterFiles, *, replace: bool) -> Installed:
        """Make `files` what later jobs for `name` get. On any error nothing has changed."""
        current = self._bank.find(name)
        if current is not None and not replace:
            raise AdapterExists(f"adapter {name!r} is loaded already; load_inplace replaces it", param="lora_name")
        self._bank.load(files, name=name, replaces=current)
        self._outdate(name)
        if current is not None and current.digest != files.digest:
            self._forget(current.digest)
        return Installed(files.digest, current.digest if current is not None else None)

    def unload(self, name: str) -> str | None:
        """Stop serving `name`: requests that wait fail, those that have begun end so. Its digest, if resident."""
        self._end_waiting(name, ModelNotFound(f"adapter {name!r} was unloaded", param="model"))
        self._outdate(name)
        version = self._bank.find(name)
        if version is None:
            return None
        self._bank.retire(version)
        self._forget(version.digest)
        return version.digest

    def pin(self, name: str, pinned: bool) -> None:
        """Keep `name` from being evicted, or let it."""
        (self._bank.pin if pinned else self._bank.unpin)(name)
        self._changed = True

    def released(self) -> None:
        """A lease ended or a waiting job went: look again at who waits for a slot."""
        self._changed = True

    def arrived(self, name: str, files: AdapterFiles) -> None:
        """An adapter that `fetch` asked for; of no use if it was replaced meanwhile or nobody waits any more."""
        wanted = self._fetching.pop(name, False)
        if wanted and self._bank.find(name) is None and self._waiting.wanted(name):
            self._arrived[name] = files
            self._changed = True

    def missing(self, name: str, error: RouterError) -> None:
        """An adapter that `fetch` asked for cannot be had: the jobs that wait for it end with the reason."""
        if self._fetching.pop(name, False):
            self._end_waiting(name, error)

    def digests(self) -> set[str]:
        """Digests that a new job could get."""
        return {"base"} | {str(entry["digest"]) for entry in self._bank.stats()["resident"] if not entry["retired"]}

    def usable(self, adapter: str | None) -> bool:
        """Whether a job for `adapter` could start now."""
        return adapter is None or (adapter != self._held and self._bank.find(adapter) is not None)

    def waits_for_slot(self, adapter: str | None) -> bool:
        """Whether the adapter has been read and finds no slot."""
        return adapter in self._arrived

    @property
    def movable(self) -> bool:
        """Whether `settle` could change anything."""
        if self._changed and self._arrived:
            return True
        return any(self._fetchable(adapter) for adapter in self._waiting.adapters())

    def settle(self) -> None:
        """Ask for adapters that jobs wait for; give slots to those that came."""
        for adapter in self._waiting.adapters():
            if adapter is not None and self._fetchable(adapter):
                self._fetching[adapter] = True
                self._fetch(adapter)
        if self._changed:
            self._changed = False
            self._held = self._place_arrived()

    def _place_arrived(self) -> str | None:
        """Load what has been read; the name of the adapter to hold for the first that found no slot."""
        held: str | None = None
        for name, files in list(self._arrived.items()):
            if not self._waiting.wanted(name):
                del self._arrived[name]
                continue
            try:
                self._bank.load(files, name=name)
            except SlotsBusy as error:
                occupants = self._in_the_way(files)
                held = held or _idle_first(occupants)
                if any(entry["retired"] or not entry["pinned"] for entry in occupants):
                    continue
                self._end_waiting(name, error)  # everything is pinned: waiting would not help
            except RouterError as error:
                self._end_waiting(name, error)
            del self._arrived[name]
        return held

    def _in_the_way(self, files: AdapterFiles) -> list[dict[str, Any]]:
        """Versions of which one must go before `files` find a slot: where an experts' slot lacks, one that has it."""
        stats = self._bank.stats()
        resident: list[dict[str, Any]] = stats["resident"]
        if any(pair.experts for pair in files.modules.values()):
            with_experts = [entry for entry in resident if entry["expert_slot"]]
            if len(with_experts) >= stats["expert_slots"]:
                return with_experts
        return resident

    def _fetchable(self, adapter: str | None) -> bool:
        return (
            adapter is not None
            and len(self._fetching) + len(self._arrived) < MAX_FETCHES
            and adapter not in self._fetching
            and adapter not in self._arrived
            and self._bank.find(adapter) is None
            and self._waiting.wanted(adapter)
        )

    def _outdate(self, name: str) -> None:
        """Whatever has been read of `name`, or is being read, is not what new jobs shall get."""
        self._arrived.pop(name, None)
        if name in self._fetching:
            self._fetching[name] = False
        self._changed = True

    def _end_waiting(self, name: str, error: RouterError) -> None:
        for job in self._waiting.take_unbound(name):
            self._fail(job, error)

    def _forget(self, digest: str) -> None:
        if digest not in self.digests():
            self._purge(digest)


def _idle_first(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """The adapter that is likely to be idle first: the fewest leases, then the least recently used."""
    evictable = [entry for entry in entries if not entry["pinned"] and not entry["retired"]]
    chosen = min(evictable, key=lambda entry: (entry["leases"], entry["last_used"]), default=None)
    return None if chosen is None else str(chosen["name"])

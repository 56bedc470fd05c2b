"""The adapters that this specialist knows by name: where their files are, and whether they may serve.

available ──load──> resident (the bank knows)      unloaded: by an operator, until it is loaded again
quarantined: known, with the reason; takes no traffic
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_router.errors import AdapterNotFound, AdapterQuarantined, ModelNotFound
from mlx_router.lora.load import AdapterFiles, read_adapter
from mlx_router.specialist.counters import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One adapter's name and files."""

    name: str
    path: Path | None  # None: no weights are installed
    sha256: str | None = None  # that the weights must have
    quarantined: str | None = None  # the reason
    unloaded: bool = False
    pinned: bool = False  # at the start


@dataclass(frozen=True, slots=True)
class Source:
    """Files that may serve an adapter."""

    name: str
    path: Path
    sha256: str | None = None  # that the weights must have


class Catalog:
    """Names to files. `locate(name)` says what is installed now, None for a name that nobody knows.

    One thread changes what is known, the model's: it puts a new mapping in the place of the old one, so that the others
    see one moment or the next. Requests are counted and listed on the event loop's.
    """

    def __init__(
        self,
        base_names: Iterable[str],
        known: Iterable[Known],
        *,
        roots: Sequence[Path],
        locate: Callable[[str], Known | None] = lambda name: None,
    ) -> None:
        self._base_names = frozenset({"base", "default_model", *base_names})
        self._known: Mapping[str, Known] = {item.name: item for item in known}
        self._requests: Counter[str] = Counter()
        self._roots = tuple(roots)
        self._locate = locate

    def resolve(self, model: str) -> str | None:
        """The adapter that a request's `model` names; None is the base. Raises ModelNotFound, AdapterQuarantined."""
        if model in self._base_names:
            return None
        known = self._known.get(model)
        if known is None or known.unloaded:
            raise ModelNotFound(f"model {model!r} does not exist here", param="model")
        if known.quarantined is not None:
            # Why is for the operator, in /v1/adapters: it may name files.
            raise AdapterQuarantined(f"adapter {model!r} is quarantined", param="model")
        return model

    def count(self, name: str) -> None:
        """One more request for an adapter."""
        self._requests[name] += 1

    def source(self, name: str, path: str | None = None, *, fresh: bool = False) -> Source:
        """The files at `path`; with `fresh` those that are installed now; else those that serve requests for `name`.

        Raises AdapterNotFound, AdapterQuarantined, and for the last ModelNotFound.
        """
        if path is not None:
            return Source(name, Path(path))
        found = None
        if not fresh:
            self.resolve(name)
            found = self._known[name]
        if found is None or found.path is None:
            found = self._locate(name)
        if found is None or found.path is None:
            raise AdapterNotFound(f"no weights are installed for adapter {name!r}", param="lora_name")
        if found.quarantined is not None:
            raise AdapterQuarantined(f"adapter {name!r} is quarantined: {found.quarantined}", param="lora_name")
        return Source(name, found.path, found.sha256)

    def read(self, source: Source) -> AdapterFiles:
        """Read and check files, which must lie under the roots; runs beside everything else."""
        return read_adapter(source.path, roots=self._roots, sha256=source.sha256, name=source.name)

    def loaded(self, name: str, files: AdapterFiles) -> None:
        """`files` serve `name` from now on, and are what is read again after an eviction."""
        known = self._known.get(name) or Known(name=name, path=None)
        self._put(replace(known, path=files.path, sha256=files.digest, quarantined=None, unloaded=False))

    def unloaded(self, name: str) -> None:
        """`name` takes no requests until it is loaded again. Raises AdapterNotFound."""
        self._put(replace(self.require(name), unloaded=True))

    def require(self, name: str) -> Known:
        """Raises AdapterNotFound for a name that is not known, or was unloaded already."""
        known = self._known.get(name)
        if known is None or known.unloaded:
            raise AdapterNotFound(f"adapter {name!r} is not known here", param="lora_name")
        return known

    def quarantine(self, name: str, reason: str, path: Path | None) -> None:
        """`name` takes no traffic, and this is why; nothing happens where other files than those at `path` serve it."""
        known = self._known.get(name) or Known(name=name, path=None)
        if known.path in (None, path):
            self._put(replace(known, quarantined=reason))

    def _put(self, known: Known) -> None:
        self._known = {**self._known, known.name: known}

    def served(self) -> list[Known]:
        """Adapters that requests may name, by name."""
        return sorted(
            (
                item
                for item in self._known.values()
                if not item.unloaded and item.quarantined is None and item.path is not None
            ),
            key=lambda item: item.name,
        )

    def pinned(self) -> list[Known]:
        """Adapters to load at the start and keep."""
        return [item for item in self._known.values() if item.pinned and item.quarantined is None]

    def describe(self, snapshot: Snapshot | None) -> list[dict[str, Any]]:
        """What GET /v1/adapters lists."""
        resident: Mapping[str, Mapping[str, Any]] = snapshot.resident() if snapshot is not None else {}
        rows = []
        for known in sorted(self._known.values(), key=lambda item: item.name):
            entry = resident.get(known.name)
            rows.append(
                {
                    "id": known.name,
                    "state": self._state(known, entry is not None),
                    "digest": entry["digest"] if entry else None,
                    "rank": entry["rank"] if entry else None,
                    "slot": entry["slot"] if entry else None,
                    "pinned": bool(entry and entry["pinned"]),
                    "requests": self._requests[known.name],
                    "active": entry["leases"] if entry else 0,
                    "path": str(known.path) if known.path is not None else None,
                    "reason": known.quarantined or (None if known.path else "no weights are installed"),
                }
            )
        return rows

    @staticmethod
    def _state(known: Known, resident: bool) -> str:
        if known.quarantined is not None:
            return "quarantined"
        if known.unloaded:
            return "unloaded"
        if resident:
            return "resident"
        return "available" if known.path is not None else "missing"

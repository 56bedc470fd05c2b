"""$HOME/run/status.json: what `serve` does now, for `mlx-router status`, the gateway's page and the next serve."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mlx_router.files import replacing
from mlx_router.supervisor.child import Child
from mlx_router.supervisor.lock import RUN, Holder
from mlx_router.supervisor.spec import GATEWAY
from mlx_router.supervisor.states import State
from mlx_router.supervisor.traffic import OF_GATEWAY, OF_SPECIALIST, Traffic

STATUS = "status.json"
FORMAT = 1


def status_path(home: Path) -> Path:
    """Where the record is."""
    return home / RUN / STATUS


def read_record(home: Path) -> dict[str, Any] | None:
    """The last record, of a serve that runs or of one that has ended; None where there is none."""
    try:
        found = json.loads(status_path(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


class Gauge:
    """What is measured of one child's process."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.traffic = Traffic(OF_GATEWAY if child.spec.kind == GATEWAY else OF_SPECIALIST)
        self._process: psutil.Process | None = None

    async def measure(self) -> None:
        """Take one reading of its traffic; a child that does not serve has none."""
        page = await self.child.prober.text("/metrics") if self.child.serving else None
        if page is None:
            self.traffic.forget()
        else:
            self.traffic.read(page, time.monotonic())

    def state(self) -> dict[str, Any]:
        """Everything about the child, as plain data."""
        child, spec = self.child, self.child.spec
        memory, cpu = self._usage()
        details = child.look.details
        queue = details.get("queue") if isinstance(details.get("queue"), dict) else {}
        return {
            "name": spec.name,
            "kind": spec.kind,
            "state": child.state.value,
            "serving": child.serving,
            "reason": child.reason or None,
            "since": round(child.since, 3),
            "pid": child.pid,
            "created_at": self._created_at(),
            "host": spec.host,
            "port": spec.port,
            "url": spec.url,
            "restarts": child.restarts,
            "last_end": child.last.reason if child.last else None,
            "next_start": round(child.next_start, 3) if child.next_start else None,
            "memory_bytes": memory,
            "cpu_percent": cpu,
            "adapters": details.get("adapters") if isinstance(details.get("adapters"), list) else None,
            "waiting": queue.get("waiting") if queue else None,
            "running": queue.get("running") if queue else None,
            **self.traffic.figures(),
            "log": str(child.log.path),
            "log_error": child.log.error or None,
            "log_lost_bytes": child.log.lost_bytes,
        }

    def _usage(self) -> tuple[int | None, float | None]:
        pid = self.child.pid
        if pid is None:
            self._process = None
            return None, None
        try:
            if self._process is None or self._process.pid != pid:
                self._process = psutil.Process(pid)
            return int(self._process.memory_info().rss), round(self._process.cpu_percent(None), 1)
        except psutil.Error:
            return None, None

    def _created_at(self) -> float | None:
        try:
            return self._process.create_time() if self._process is not None else None
        except psutil.Error:
            return None


def all_ready(children: Iterable[Child]) -> bool:
    """Whether every child serves, and the gateway has seen that each specialist does."""
    known = list(children)
    specialists = {child.spec.name for child in known if child.spec.kind != GATEWAY}
    unseen = [specialists & child.waits for child in known if child.spec.kind == GATEWAY]
    return all(child.serving for child in known) and not any(unseen)


def overall(children: Iterable[Child], stopping: bool) -> str:
    """One word for all: starting, ready, degraded, failed or stopping."""
    if stopping:
        return "stopping"
    known = list(children)
    if all_ready(known):
        return "ready"
    if any(child.state is State.FAILED for child in known):
        return "failed"
    first = all(child.restarts == 0 and child.state in (State.STARTING, State.READY) for child in known)
    return "starting" if first else "degraded"


def write_record(home: Path, record: Mapping[str, Any]) -> str:
    """Replace the record in one step; why that was not possible, or nothing."""
    try:
        with replacing(status_path(home)) as draft:
            draft.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
            draft.chmod(0o600)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def leftovers(home: Path) -> list[psutil.Process]:
    """Children of an earlier serve that still run: it was killed, and they have not noticed yet."""
    found = []
    record = read_record(home) or {}
    for child in record.get("children", []):
        with contextlib.suppress(psutil.Error, TypeError, ValueError, KeyError):
            process = psutil.Process(int(child["pid"]))
            if abs(process.create_time() - float(child["created_at"])) < 1.0:
                found.append(process)
    return found


def end_leftovers(home: Path, patience_s: float) -> list[int]:
    """Ask them to leave, wait, kill. The pids that were there."""
    found = leftovers(home)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return [process.pid for process in found]


def holder_fields(holder: Holder) -> dict[str, Any]:
    """The supervisor's own part of a record."""
    return {"format": FORMAT, "pid": holder.pid, "created_at": holder.created_at, "config": holder.config}

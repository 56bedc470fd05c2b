"""One `serve` a home: a lock that the system frees when its holder dies, and a note of who that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mlx_router.errors import SupervisorError

RUN = "run"
LOCK = "serve.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that serves a home."""

    pid: int
    created_at: float  # when the process began, so that another one with the same number is not taken for it
    config: str | None = None

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_at) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def describe(self) -> str:
        """For a message."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created_at))
        return f"process {self.pid}, since {since}, with {self.config or 'built-in defaults'}"


def myself(config: str | None) -> Holder:
    """This process as a holder."""
    return Holder(pid=os.getpid(), created_at=psutil.Process().create_time(), config=config)


@contextlib.contextmanager
def hold(home: Path, config: str | None) -> Iterator[Holder]:
    """Hold `home` for as long as the block runs. Raises SupervisorError, which says who holds it already."""
    path = home / RUN / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SupervisorError(f"{path}: {error.strerror or error}") from error
    try:
        if not _try(descriptor):
            other = holder(home)
            raise SupervisorError(
                f"{home} is already served by {other.describe() if other else 'another process'}; look with"
                " `mlx-router status`, end it with `mlx-router stop`, or give another --home"
            )
        me = myself(config)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
        yield me
    finally:
        os.close(descriptor)


def holder(home: Path) -> Holder | None:
    """Who serves `home` now; None where nobody does."""
    path = home / RUN / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _try(descriptor):
            return None
        found = Holder(**json.loads(os.read(descriptor, 65536)))
    except (ValueError, TypeError):  # between the lock and its note
        return None
    finally:
        os.close(descriptor)
    return found if found.alive else None


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

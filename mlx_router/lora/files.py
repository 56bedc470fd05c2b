"""Adapter directories on disk: where they may lie, reading them whole, and their digests."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.errors import AdapterError, AdapterForbidden, AdapterNotFound, AdapterTooLarge

CONFIG_FILE = "adapter_config.json"
MLX_FILE = "adapters.safetensors"
PEFT_FILE = "adapter_model.safetensors"

Identity = tuple[int, int, int, int, int]  # device, inode, bytes, mtime and ctime in ns


@dataclass(frozen=True, slots=True)
class FileData:
    """A file as it was read through one descriptor."""

    data: memoryview
    identity: Identity
    settled: bool  # old enough that a later change must show in its identity


def resolve_directory(path: Path, roots: Sequence[Path] | None) -> Path:
    """The real directory behind `path`; AdapterForbidden outside the roots, AdapterNotFound if there is none."""
    try:
        directory = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        if roots is not None:  # say nothing about what exists outside
            check_inside(path.expanduser().resolve(), roots, path)
        raise AdapterNotFound(f"adapter directory {path} does not exist") from error
    check_inside(directory, roots, path)
    if not directory.is_dir():
        raise AdapterNotFound(f"adapter path {path} is not a directory")
    return directory


def check_inside(resolved: Path, roots: Sequence[Path] | None, asked: Path) -> None:
    """Raise AdapterForbidden when a path, links resolved, is under none of the roots (None: anywhere)."""
    if roots is None:
        return
    allowed = [root.expanduser().resolve() for root in roots]
    if not any(resolved.is_relative_to(root) for root in allowed):
        listed = ", ".join(str(root) for root in allowed) or "none configured"
        raise AdapterForbidden(f"{asked} lies outside the adapter roots ({listed})")


def weights_file(directory: Path) -> str:
    """The name of the weights file in an adapter directory; AdapterNotFound naming all that is missing."""
    weights = MLX_FILE if (directory / MLX_FILE).exists() else PEFT_FILE
    missing = [] if (directory / weights).exists() else [f"{MLX_FILE} (or {PEFT_FILE})"]
    if not (directory / CONFIG_FILE).exists():
        missing.append(CONFIG_FILE)
    if missing:
        raise AdapterNotFound(f"{directory} has no {' and no '.join(missing)}")
    return weights


def read_whole(file: Path, roots: Sequence[Path] | None, limit_bytes: int) -> FileData:
    """The whole of a regular file inside the roots: what is hashed is what is used, whatever happens on disk."""
    resolved = file.resolve()
    check_inside(resolved, roots, file)
    try:
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise AdapterError(f"{file} is not a regular file")
        if info.st_size > limit_bytes:
            raise AdapterTooLarge(f"{file} has {info.st_size} bytes, the limit is {limit_bytes}")
        view = np.empty(info.st_size, dtype=np.uint8).data
        filled = 0
        while filled < len(view) and (count := stream.readinto(view[filled:])):
            filled += count
        after = os.fstat(descriptor)
    if filled != info.st_size or _identity(after) != _identity(info):
        raise AdapterError(f"{file} changed while it was read")
    settled = time.time() - max(info.st_mtime, info.st_ctime) > 2.0  # seconds; clocks of file systems are coarse
    return FileData(view.toreadonly(), _identity(info), settled)


def _identity(info: os.stat_result) -> Identity:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


class KnownFiles:
    """Hashes of weights files that have been read and found healthy, by identity, so that neither is done again.

    A file that changes has another ctime, which nobody can set. The oldest entries are forgotten first.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._hashes: OrderedDict[Identity, Any] = OrderedDict()

    def find(self, file: FileData) -> Any | None:
        """A sha256 object that has eaten the file, or None."""
        return self._hashes.get(file.identity) if file.settled else None

    def add(self, file: FileData, digest: Any) -> None:
        if file.settled:
            self._hashes[file.identity] = digest
            while len(self._hashes) > self._limit:
                self._hashes.popitem(last=False)


def adapter_digest(path: Path | str) -> str:
    """The digest of an adapter directory: `cat adapters.safetensors adapter_config.json | sha256sum`."""
    directory = Path(path)
    total = hashlib.sha256()
    for name in (weights_file(directory), CONFIG_FILE):
        with (directory / name).open("rb") as stream:
            while block := stream.read(2**20):
                total.update(block)
    return f"sha256:{total.hexdigest()}"

"""One adapter's folder under a home: its versions, the one that serves, its state; and how a version is built.

The layout is drawn in `registry`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_router.errors import AdapterError
from mlx_router.lora.manifest import FILE

CURRENT, STATE, PROVENANCE, CHECK = "CURRENT", "state.toml", "provenance.json", "check.json"
_VERSION = re.compile(r"[0-9a-f]{12}")
_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")
_CONFIG = "adapter_config.json"


def versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(item.name for item in folder.iterdir() if _VERSION.fullmatch(item.name) and (item / FILE).is_file())


def current(folder: Path) -> str | None:
    try:
        return (folder / CURRENT).read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_state(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{folder / STATE}: {error}") from error


def evaluation(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads((path / CHECK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path / CHECK}: {error}") from error
    return raw if isinstance(raw, dict) else {}


def whole(version: Path, digest: str) -> bool:
    """Whether a published version is there with the files that it was published with."""
    from mlx_router.lora.files import adapter_digest

    return (version / FILE).is_file() and (version / _CONFIG).is_file() and adapter_digest(version) == digest


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    for left in folder.glob(".draft-*"):  # of a process that died; the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def copy(source: Path, draft: Path) -> None:
    weights = next(name for name in _WEIGHTS if (source / name).is_file())
    for name in (weights, _CONFIG):
        shutil.copyfile(source / name, draft / name)
        with (draft / name).open("rb") as file:
            os.fsync(file.fileno())


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

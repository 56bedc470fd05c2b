"""The names that a configuration may refer to: adapters of manifests and installed ones, domains of router versions."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

from mlx_router.config.check import Known
from mlx_router.resources import adapters_dir, corpus_dir


def known_names(home: Path) -> Known:
    """Read off the disk as it is now; what cannot be read is left out."""
    adapters: set[str] = set()
    domains: set[str] = {path.stem for path in corpus_dir().glob("*.jsonl") if not path.name.startswith("_")}
    for folder in (adapters_dir(), home / "adapters"):
        for path in folder.glob("*/"):
            if path.name.startswith("."):
                continue
            adapters.add(path.name)
            domains |= _claimed(path / "adapter.toml")
    for meta in (home / "router").glob("v*/meta.json"):
        domains |= _labels(meta)
    return Known(adapters=frozenset(adapters), domains=frozenset(domains))


def _claimed(manifest: Path) -> set[str]:
    try:
        raw = tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return set()
    return _words(raw.get("domains")) | _words(raw.get("stands_in"))


def _labels(meta: Path) -> set[str]:
    try:
        return _words(json.loads(meta.read_text(encoding="utf-8")).get("domains"))
    except (OSError, ValueError, AttributeError):
        return set()


def _words(value: object) -> set[str]:
    items: Iterable[object] = value if isinstance(value, list) else ()
    return {item for item in items if isinstance(item, str)}

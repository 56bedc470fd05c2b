"""What the adapters' manifests and their installed states say, as plain entries for the routing table."""

from __future__ import annotations

import tomllib
from pathlib import Path

from mlx_router.config import Config
from mlx_router.errors import ConfigError
from mlx_router.gateway.routes import AdapterEntry
from mlx_router.resources import adapters_dir


def adapter_entries(config: Config) -> list[AdapterEntry]:
    """Every adapter that has a manifest, by name."""
    return [_entry(path) for path in sorted(adapters_dir().glob("*/adapter.toml"))]


def _entry(path: Path) -> AdapterEntry:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return AdapterEntry(
        name=str(raw.get("name", path.parent.name)),
        domains=tuple(raw.get("domains", ())),
        specialist=str(raw.get("specialist", "")),
        title=str(raw.get("title", "")),
    )

"""What the registry of installed adapters says about the adapters that a specialist is configured with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import AdapterNotFound
from mlx_router.lora.registry import Registry
from mlx_router.specialist.catalog import Known


def registered(config: Config, settings: SpecialistConfig) -> list[Known]:
    """One entry for each configured or pinned adapter, installed or not.

    A specialist that is configured with none has those whose manifests name it.
    """
    registry = Registry(config.home)
    names = settings.adapters or tuple(
        name for name, manifest in registry.manifests().items() if manifest.specialist == settings.name
    )
    known = [
        installed(config.home, name) or Known(name=name, path=None)
        for name in dict.fromkeys((*names, *settings.pinned))
    ]
    return [replace(item, pinned=True) if item.name in settings.pinned else item for item in known]


def installed(home: Path, name: str) -> Known | None:
    """One adapter as it is installed now; None for a name that no manifest has."""
    try:
        record = Registry(home).find(name)
    except AdapterNotFound:
        return None
    reason = (record.reason or "no reason given") if record.status == "quarantined" else None
    return Known(name=name, path=record.path, sha256=record.sha256, quarantined=reason, pinned=record.pinned)

"""What the registry of installed adapters says about the adapters that a specialist is configured with."""

from __future__ import annotations

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
    known = []
    for name in dict.fromkeys((*names, *settings.pinned)):
        try:
            record = registry.find(name)
        except AdapterNotFound:
            known.append(Known(name=name, path=None))
            continue
        reason = (record.reason or "no reason given") if record.status == "quarantined" else None
        known.append(Known(name=name, path=record.path, sha256=record.sha256, quarantined=reason))
    return known

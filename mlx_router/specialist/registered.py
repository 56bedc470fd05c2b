"""What the registry of installed adapters says about the adapters that a specialist is configured with."""

from __future__ import annotations

import importlib
from typing import Any

from mlx_router.config import Config, SpecialistConfig
from mlx_router.resources import adapters_dir
from mlx_router.specialist.catalog import Known


def registered(config: Config, settings: SpecialistConfig) -> list[Known]:
    """One entry for each configured or pinned adapter, installed or not."""
    try:
        registry: Any = importlib.import_module("mlx_router.lora.registry").Registry(config.home, adapters_dir())
    except ModuleNotFoundError:
        registry = None
    known = []
    for name in dict.fromkeys((*settings.adapters, *settings.pinned)):
        record = registry.find(name) if registry is not None else None
        if record is None:
            known.append(Known(name=name, path=None))
            continue
        reason = (record.reason or "no reason given") if record.status == "quarantined" else None
        known.append(Known(name=name, path=record.path, sha256=record.sha256, quarantined=reason))
    return known

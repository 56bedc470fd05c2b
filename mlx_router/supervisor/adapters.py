"""A changed list of adapters reaches running specialists through their admin endpoints: no request is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mlx_router.config import Config, SpecialistConfig
from mlx_router.supervisor.probe import Prober


def installed(home: Path, name: str) -> Path | None:
    """The folder of an adapter's current weights; None where none are installed."""
    folder = home / "adapters" / name
    try:
        version = (folder / "CURRENT").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / version if version and (folder / version).is_dir() else None


async def follow_adapters(
    before: Config, after: Config, probers: Mapping[str, Prober], say: Callable[[str], None]
) -> None:
    """Load what was added to a specialist's `adapters`, unload what was taken away, pin and unpin."""
    old = {item.name: item for item in before.specialists}
    for item in after.specialists:
        if item.name in old and item.name in probers:
            await _follow(old[item.name], item, after.home, probers[item.name], say)


async def _follow(
    old: SpecialistConfig, new: SpecialistConfig, home: Path, prober: Prober, say: Callable[[str], None]
) -> None:
    steps: list[tuple[str, str, dict[str, object]]] = []
    if old.adapters and new.adapters:  # without a list the manifests decide, and those have not changed
        for name in (*old.adapters, *old.pinned):
            if name not in (*new.adapters, *new.pinned):
                steps.append(("unload", name, {}))
        for name in new.adapters:
            path = installed(home, name)
            if name not in old.adapters and path is not None:
                steps.append(("load", name, {"lora_path": str(path)}))
    steps += [("pin", name, {"pinned": True}) for name in new.pinned if name not in old.pinned]
    kept = (*new.adapters, *new.pinned) if new.adapters else old.pinned
    steps += [("pin", name, {"pinned": False}) for name in old.pinned if name not in new.pinned and name in kept]
    for action, name, more in steps:
        status, body = await prober.post(f"/v1/{action}_lora_adapter", {"lora_name": name, **more})
        if status == 200:
            say(f"{new.name}: {action} {name}")
        elif not (action == "load" and status == 409) and not (action == "unload" and status == 404):
            error = body.get("error")
            message = error.get("message") if isinstance(error, dict) else error
            say(f"{new.name}: {action} {name} failed: {message or status}")

"""What the demo needs before anything can be served: a home, a configuration, a router version, base and adapters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_router.artifacts.store import RouterStore
from mlx_router.errors import RouterError, SupervisorError
from mlx_router.files import write_atomic
from mlx_router.lora.demo_recipes import ADAPTERS
from mlx_router.lora.registry import Registry
from mlx_router.supervisor.lock import holder

if TYPE_CHECKING:
    from mlx_router.lora.demo import DemoPaths, DemoProgress

OWN_HOME = "demo-home"  # under the home, where the home itself is in use
BASE = "demo"
_CONFIG = """# Written by `mlx-router demo`.
adapter_roots = ["{roots}"]

[gateway]
port = 0
probe_interval_s = 0.5
drain_timeout_s = 10

[supervisor]
give_up_after = 2
"""
_SPECIALIST = """
[[specialist]]
name = "{name}"
port = 0
base = "{base}"
slots = 16
bank_bytes = "512 MiB"
prompt_cache_bytes = "128 MiB"
drain_s = 10
"""


def choose_home(home: Path) -> tuple[Path, str]:
    """Where the demo lives, and why it is not `home`; it shares the router versions and what was prepared.

    A home that is being served, or has adapters of another base under the demo's names, is left alone.
    """
    running = holder(home)
    reason = f"{home} is being served by process {running.pid}" if running is not None else _foreign(home)
    if not reason:
        return home, ""
    own = home / OWN_HOME
    own.mkdir(parents=True, exist_ok=True)
    for name in ("router", "cache", "demo"):
        (home / name).mkdir(exist_ok=True)
        link = own / name
        if not link.is_symlink():
            link.symlink_to(Path("..", name))
    return own, reason


def write_config(home: Path, base: str = BASE) -> Path:
    """The demo's configuration: the defaults on free ports, whatever file the user has."""
    path = home / "run" / "demo.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _CONFIG.format(roots=_escaped(str((home / "demo").resolve())))
    text += "".join(_SPECIALIST.format(name=name, base=_escaped(base)) for name in ("hardware", "code"))
    write_atomic(path, text)
    return path


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def ensure_router(home: Path, config: Path) -> bool:
    """Train a router version where there is none; whether that was needed. Raises SupervisorError."""
    if RouterStore(home).current() is not None:
        return False
    command = [sys.executable, "-m", "mlx_router", "--home", str(home), "--config", str(config), "router", "train"]
    done = subprocess.run(command, stdout=sys.stderr, check=False)  # stdout may be for JSON
    if done.returncode != 0:
        raise SupervisorError(f"training the router failed with status {done.returncode}")
    return True


def ensure_adapters(home: Path, progress: DemoProgress) -> DemoPaths:
    """The demo base and its adapters, made and installed where they are not there."""
    from mlx_router.lora.demo import ensure_demo

    return ensure_demo(home, progress)


def _foreign(home: Path) -> str:
    """Names of the demo's adapters under which weights of another base are installed."""
    registry = Registry(home)
    try:
        records = [registry.find(name) for name in ADAPTERS]
    except RouterError:
        return ""
    others = [item.name for item in records if item.path is not None and item.manifest.base != BASE]
    return f"{home} has {', '.join(others[:3])}{', …' if len(others) > 3 else ''} for another base" if others else ""

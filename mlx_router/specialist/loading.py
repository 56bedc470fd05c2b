"""The one place where a base model is loaded: a directory, a hub name, or the embedded demo base.

A base that is sharded over machines would be loaded here too, by mlx-lm's `sharded_load`, on every machine.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_router.compute import nn
from mlx_router.errors import ConfigError, EngineUnavailable
from mlx_router.specialist.generation import eos_tokens, states_can_be_cut

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A resident base model with what belongs to it."""

    name: str  # as configured
    path: Path
    digest: str  # sha256:… over the configuration, and the names and sizes of the weight files
    model: nn.Module
    tokenizer: Any  # mlx-lm's TokenizerWrapper
    config: Mapping[str, Any]
    vocab_size: int  # rows of the output layer: every valid token id is smaller
    max_context: int  # tokens of prompt and answer together
    eos: tuple[int, ...]
    states_can_be_cut: bool  # False: a state serves only prompts that begin with exactly its tokens
    defaults: Mapping[str, float]  # temperature, top_p, top_k that its publisher recommends, where there are any


def find_base(name: str, home: Path) -> Path:
    """The directory of a base: downloads a hub name that is not cached. Raises ConfigError."""
    if name == "demo":
        demo: Any = importlib.import_module("mlx_router.lora.demo")
        return Path(demo.demo_base(home))
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"base {name!r} is neither a directory nor a hub name (owner/model)")
    utils: Any = importlib.import_module("mlx_lm.utils")
    try:
        return Path(utils._download(name))
    except Exception as error:  # whatever the hub client raises: no network, no such repository, no space
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"base {name!r} cannot be fetched: {reason[0]}") from error


def load_base(name: str, home: Path, *, max_context: int) -> Base:
    """Load and evaluate a base on the calling thread, which owns its arrays from then on."""
    started = time.monotonic()
    path = find_base(name, home)
    if not (path / "config.json").is_file():
        raise ConfigError(f"base {path} has no config.json")
    mlx_lm: Any = importlib.import_module("mlx_lm")
    try:
        model, tokenizer, config = mlx_lm.load(str(path), return_config=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineUnavailable(f"base {path} cannot be loaded: {error}") from error
    text = config.get("text_config") or config
    positions = int(text.get("max_position_embeddings") or max_context)
    log.info("base=%s path=%s load_s=%.1f", name, path, time.monotonic() - started)
    return Base(
        name=name,
        path=path,
        digest=base_digest(path),
        model=model,
        tokenizer=tokenizer,
        config=config,
        vocab_size=int(text["vocab_size"]),
        max_context=min(positions, max_context),
        eos=eos_tokens(tokenizer),
        states_can_be_cut=states_can_be_cut(model),
        defaults=_sampling_defaults(path),
    )


def base_digest(path: Path) -> str:
    """Identity of a base without reading its weights: configuration, and names and sizes of the weight files."""
    files = sorted(
        (file.name, file.stat().st_size) for file in path.iterdir() if file.suffix in (".safetensors", ".json")
    )
    total = hashlib.sha256((path / "config.json").read_bytes())
    total.update(json.dumps(files).encode())
    return f"sha256:{total.hexdigest()}"


def _sampling_defaults(path: Path) -> dict[str, float]:
    """What generation_config.json recommends; nothing where it says that sampling is off."""
    try:
        raw = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(raw, dict) or not raw.get("do_sample"):
        return {}
    known = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "top_k": (0.0, 2.0**31)}
    return {
        key: float(raw[key])
        for key, (low, high) in known.items()
        if isinstance(raw.get(key), int | float) and low <= raw[key] <= high
    }

"""Small adapter directories in mlx-lm's and PEFT's formats, for tests that need files and no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODULE = "model.layers.0.self_attn.q_proj"


def write_adapter(path: Path, seed: int = 1, *, rank: int = 4, width: int = 8, b: float = 1.0) -> Path:
    """An adapter of one module, (width, rank) and (rank, width); `b` scales its B."""
    random = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{MODULE}.lora_a": random.normal(size=(width, rank)).astype(np.float32),
        f"{MODULE}.lora_b": (b * random.normal(size=(rank, width))).astype(np.float32),
    }
    save_file(tensors, path / "adapters.safetensors")
    parameters = {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def write_peft(path: Path, *, rank: int = 4, width: int = 8) -> Path:
    """The same shape as PEFT writes it: A (r, in), B (out, r), alpha 2r."""
    random = np.random.default_rng(7)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": random.normal(size=(rank, width)).astype(np.float32),
        f"base_model.model.{MODULE}.lora_B.weight": random.normal(size=(width, rank)).astype(np.float32),
    }
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


MANIFEST = """name = "{name}"
title = "A test adapter"
domains = {domains}
specialist = "hardware"
"""


def write_manifest(folder: Path, name: str, domains: list[str], extra: str = "") -> Path:
    """`<folder>/<name>/adapter.toml`."""
    path = folder / name / "adapter.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MANIFEST.format(name=name, domains=json.dumps(domains)) + extra, encoding="utf-8")
    return path

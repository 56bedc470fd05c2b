"""Read an adapter directory into memory, in mlx-lm's format or PEFT's, and check all that needs no model.

mlx-lm: `adapters.safetensors` + `adapter_config.json` (fine_tune_type, num_layers, lora_parameters).
PEFT:   `adapter_model.safetensors` + `adapter_config.json` (peft_type, r, lora_alpha, target_modules, ...).
Nothing here imports mlx, so that reading and checking can run beside the thread that decodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.errors import AdapterError
from mlx_router.lora.files import (
    CONFIG_FILE,
    PEFT_FILE,
    KnownFiles,
    read_whole,
    resolve_directory,
    weights_file,
)
from mlx_router.lora.peft import read_peft
from mlx_router.lora.tensors import Array, is_number, parse_safetensors

CONFIG_LIMIT_BYTES = 2**20
DEFAULT_LIMIT_BYTES = 8 * 2**30
KNOWN = KnownFiles()


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One module's matrices as mlx-lm lays them out.

    Linear and Embedding: a (in, r), b (r, out). Switch layers: a (E, r, in), b (E, out, r).
    """

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        return int(self.a.shape[-1] if self.a.ndim == 2 else self.a.shape[-2])

    @property
    def experts(self) -> int:
        """Number of experts, 0 for a dense module."""
        return int(self.a.shape[0]) if self.a.ndim == 3 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """An adapter as it lies in memory, checked as far as it can be without a model."""

    name: str
    path: Path
    format: str  # "mlx-lm" or "peft"
    digest: str  # "sha256:<hex>" over the weights file followed by the configuration file
    weights_sha256: str  # hex, of the weights file alone
    rank: int  # the largest of its modules
    scale: float
    num_layers: int | None  # last layers that the configuration names; None or <= 0: all
    keys: tuple[str, ...] | None  # module names that the configuration names; None: every kind that mlx-lm adapts
    modules: Mapping[str, LoraPair]
    config: Mapping[str, Any]


def read_adapter(
    path: Path | str,
    *,
    roots: Sequence[Path] | None = None,
    sha256: str | None = None,
    name: str | None = None,
    max_bytes: int = DEFAULT_LIMIT_BYTES,
) -> AdapterFiles:
    """Read and check the adapter in directory `path`.

    `roots`: directories under which it must lie, links resolved (None: anywhere). `sha256`: what its digest,
    or the hash of its weights file, must be. Raises AdapterNotFound, AdapterForbidden, AdapterTooLarge, or
    AdapterError with every other problem at once.
    """
    directory = resolve_directory(Path(path), roots)
    weights_name = weights_file(directory)
    config_file = read_whole(directory / CONFIG_FILE, roots, CONFIG_LIMIT_BYTES)
    weights = read_whole(directory / weights_name, roots, max_bytes)
    known = KNOWN.find(weights)
    with ThreadPoolExecutor(1) as hashing:  # sha256 is the slowest part and lets go of the interpreter
        running = hashing.submit(hashlib.sha256, weights.data) if known is None else None
        config = _parse_config(config_file.data, directory)
        tensors = parse_safetensors(weights.data, f"{directory / weights_name}")
        if weights_name == PEFT_FILE:
            pairs, scale, problems = read_peft(tensors, config, max_bytes=max_bytes)
            modules = {module: LoraPair(a, b) for module, (a, b) in pairs.items()}
            num_layers, keys = None, None
        else:
            modules, scale, num_layers, keys, problems = _read_mlx(tensors, config)
        if known is None:
            problems += _health(modules)
        weights_hash: Any = known if running is None else running.result()
    weights_sha256 = weights_hash.hexdigest()
    total = weights_hash.copy()
    total.update(config_file.data)
    digest = f"sha256:{total.hexdigest()}"
    if sha256 is not None and sha256.removeprefix("sha256:").lower() not in (weights_sha256, digest[7:]):
        problems.insert(0, f"sha256 is {digest[7:]}, expected {sha256.removeprefix('sha256:')}")
    if problems:
        raise AdapterError.from_problems(f"adapter {directory} cannot be used", problems)
    KNOWN.add(weights, weights_hash)
    return AdapterFiles(
        name=name or directory.name,
        path=directory,
        format="peft" if weights_name == PEFT_FILE else "mlx-lm",
        digest=digest,
        weights_sha256=weights_sha256,
        rank=max(pair.rank for pair in modules.values()),
        scale=scale,
        num_layers=num_layers,
        keys=keys,
        modules=modules,
        config=config,
    )


def _parse_config(data: memoryview, directory: Path) -> dict[str, Any]:
    try:
        config = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{directory / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{directory / CONFIG_FILE} is not a JSON object")
    return config


def _read_mlx(
    tensors: Mapping[str, Array], config: Mapping[str, Any]
) -> tuple[dict[str, LoraPair], float, int | None, tuple[str, ...] | None, list[str]]:
    """(modules, scale, num_layers, keys, problems) of an adapter in mlx-lm's format."""
    problems: list[str] = []
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        problems.append(f"fine_tune_type is {kind!r}: only 'lora' can be served beside other adapters")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        problems.append("adapter_config.json has no lora_parameters")
        parameters = {}
    scale: Any = parameters.get("scale")
    rank = parameters.get("rank")
    if not is_number(scale):
        problems.append(f"lora_parameters.scale is {scale!r}, not a finite float32 number")
        scale = 0.0
    if type(rank) is not int or rank < 1:
        problems.append(f"lora_parameters.rank is {rank!r}, not a positive integer")
        rank = None
    num_layers, keys = config.get("num_layers"), parameters.get("keys")
    if num_layers is not None and type(num_layers) is not int:
        problems.append(f"num_layers is {num_layers!r}, not an integer")
        num_layers = None
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        problems.append(f"lora_parameters.keys is {keys!r}, not a list of module names")
        keys = None
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in ("lora_a", "lora_b") or not module:
            reason = "the magnitude vector of a DoRA adapter" if leaf == "m" else "neither lora_a nor lora_b"
            problems.append(f"{name}: {reason}")
            continue
        halves.setdefault(module, {})[leaf] = tensor
    modules: dict[str, LoraPair] = {}
    for module, found in halves.items():
        if len(found) != 2:
            problems.append(f"{module}: has {next(iter(found))} but not its other half")
            continue
        a, b = found["lora_a"], found["lora_b"]
        if a.ndim != b.ndim or a.ndim not in (2, 3):
            problems.append(
                f"{module}: lora_a {a.shape} and lora_b {b.shape} are not two matrices, or two stacks of them"
            )
            continue
        pair = LoraPair(a, b)
        rank_b = b.shape[0] if b.ndim == 2 else b.shape[2]
        if pair.rank != rank_b or (a.ndim == 3 and a.shape[0] != b.shape[0]):
            problems.append(f"{module}: lora_a {a.shape} and lora_b {b.shape} do not multiply")
        elif rank is not None and pair.rank != rank:
            problems.append(f"{module}: rank {pair.rank}, but adapter_config.json says {rank}")
        else:
            modules[module] = pair
    return modules, float(scale), num_layers, None if keys is None else tuple(keys), problems


def _health(modules: Mapping[str, LoraPair]) -> list[str]:
    """NaN, infinities, and an adapter that would change nothing."""
    problems = []
    for module, pair in modules.items():
        for leaf, tensor in (("lora_a", pair.a), ("lora_b", pair.b)):
            if not _finite(tensor):
                bad = int(tensor.size - np.isfinite(tensor).sum())
                problems.append(f"{module}.{leaf}: {bad} of {tensor.size} values are NaN or infinite")
    if not modules:
        problems.append("no LoRA matrices in it")
    elif not any(pair.b.any() for pair in modules.values()):
        problems.append("every lora_b is zero: the adapter was never trained")
    return problems


def _finite(tensor: Array) -> bool:
    flat = tensor.reshape(-1)
    if flat.dtype == np.float32 and flat.flags.c_contiguous:
        with np.errstate(all="ignore"):  # a sum of squares is finite only if every value is; it may overflow
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(flat).all())

"""Turn a PEFT adapter into an mlx-lm one on disk, keeping where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mlx_router.errors import AdapterError
from mlx_router.lora.files import CONFIG_FILE, MLX_FILE
from mlx_router.lora.load import AdapterFiles, LoraPair, read_adapter
from mlx_router.lora.names import by_tail, in_layer, tail
from mlx_router.lora.tensors import Array

HUGGING_FACE_PREFIX = "model.language_model."  # of multimodal bases, whose text model mlx-lm calls ...
MLX_PREFIX = "language_model.model."


def convert_peft(
    source: Path | str, target: Path | str, *, modules: Iterable[str] | None = None, sha256: str | None = None
) -> AdapterFiles:
    """Write `target`/adapters.safetensors and adapter_config.json from the PEFT adapter in `source`.

    `modules`: the module paths of the base model, to name the adapter's by; without them transformers' names are
    kept, but for the prefix of multimodal models. Ranks are padded to the largest. The new configuration keeps the
    original under `peft` and the source's digest under `converted_from`. Raises AdapterError; returns the new files,
    read back and checked.
    """
    files = read_adapter(source, sha256=sha256)
    if files.format != "peft":
        raise AdapterError(f"{files.path} is in mlx-lm's format already")
    known = None if modules is None else by_tail(modules)
    pairs = {_rename(name, known): _pad(pair, files.rank) for name, pair in files.modules.items()}
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(pairs), folder / MLX_FILE)
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {
            "rank": files.rank,
            "scale": files.scale,
            "dropout": 0.0,
            "keys": sorted({in_layer(name) for name in pairs}),
        },
        "peft": dict(files.config),
        "converted_from": {"format": "peft", "digest": files.digest, "weights_sha256": files.weights_sha256},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return read_adapter(folder, name=files.name)


def _rename(name: str, known: Mapping[str, str] | None) -> str:
    if known is not None:
        return known.get(tail(name), name)
    if name.startswith(HUGGING_FACE_PREFIX):
        return MLX_PREFIX + name.removeprefix(HUGGING_FACE_PREFIX)
    return name


def _pad(pair: LoraPair, rank: int) -> LoraPair:
    """The same update with `rank` ranks: the added ones are zero."""
    more = rank - pair.rank
    if not more:
        return pair
    if pair.experts:
        return LoraPair(np.pad(pair.a, ((0, 0), (0, more), (0, 0))), np.pad(pair.b, ((0, 0), (0, 0), (0, more))))
    return LoraPair(np.pad(pair.a, ((0, 0), (0, more))), np.pad(pair.b, ((0, more), (0, 0))))


def _tensors(pairs: Mapping[str, LoraPair]) -> dict[str, Array]:
    return {
        f"{name}.{leaf}": np.ascontiguousarray(tensor)
        for name, pair in pairs.items()
        for leaf, tensor in (("lora_a", pair.a), ("lora_b", pair.b))
    }

"""PEFT's LoRA format, turned into mlx-lm's.

PEFT stores A (r, in) and B (out, r) under the module names of transformers, one module per expert; its scale
is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora. A module whose rank_pattern or alpha_pattern gives
it another scale has the ratio folded into B, because mlx-lm knows one scale per adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_router.lora.tensors import Array

LEAF = re.compile(r"^(?P<module>.+?)\.lora_(?P<emb>embedding_)?(?P<half>[AB])(?:\.(?!weight)[\w-]+)?(?:\.weight)?$")
EXPERT = re.compile(r"^(?P<head>.+\.mlp)\.experts\.(?P<expert>\d+)\.(?P<proj>\w+)$")
PREFIXES = ("base_model.model.", "base_model.")
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA adapters are not served",
    "lora_bias": "LoRA biases are not served",
    "fan_in_fan_out": "transposed (Conv1D) weights are not served",
    "modules_to_save": "fully trained modules are not served",
    "trainable_token_indices": "trained tokens are not served",
    "target_parameters": "LoRA on bare parameters is not served",
    "use_qalora": "QALoRA adapters are not served",
    "alora_invocation_tokens": "activated LoRA is not served",
    "layer_replication": "replicated layers are not served",
    "megatron_config": "Megatron adapters are not served",
}
CHANGES_BASE = (
    "pissa",
    "olora",
    "loftq",
    "corda",
    "eva",
    "lora_ga",
)  # initialisations that may rewrite the base


def read_peft(
    tensors: Mapping[str, Array], config: Mapping[str, Any]
) -> tuple[dict[str, tuple[Array, Array]], float, list[str]]:
    """(modules in mlx-lm's layout, scale, problems) of a PEFT adapter."""
    problems = _config_problems(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    scale = 1.0
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}, not a positive integer")
    elif not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        problems.append(f"lora_alpha is {alpha!r}, not a finite number")
    else:
        scale = _scale(alpha, rank, bool(config.get("use_rslora")))
    pairs, found = _pairs(tensors)
    problems += found
    if problems:
        return {}, scale, problems
    modules: dict[str, tuple[Array, Array]] = {}
    experts: dict[str, dict[int, tuple[Array, Array]]] = {}
    for name, (a, b) in sorted(pairs.items()):
        wanted = _pattern(config.get("rank_pattern"), name, rank)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            problems.append(f"{name}: lora_A {a.shape} and lora_B {b.shape} do not multiply")
            continue
        if a.shape[0] != wanted:
            problems.append(f"{name}: rank {a.shape[0]}, but adapter_config.json says {wanted}")
            continue
        own = _scale(_pattern(config.get("alpha_pattern"), name, alpha), a.shape[0], bool(config.get("use_rslora")))
        if own != scale:
            b = (b * np.float32(own / scale)).astype(np.float32)
        if match := EXPERT.match(name):
            stack = experts.setdefault(f"{match['head']}.switch_mlp.{match['proj']}", {})
            stack[int(match["expert"])] = (a, b)
        else:
            modules[name] = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T))
    for name, stack in experts.items():
        first = next(iter(stack.values()))
        if any(a.shape != first[0].shape or b.shape != first[1].shape for a, b in stack.values()):
            problems.append(f"{name}: its experts differ in shape")
            continue
        zero = (np.zeros_like(first[0]), np.zeros_like(first[1]))
        parts = [stack.get(expert, zero) for expert in range(max(stack) + 1)]
        modules[name] = (np.stack([a for a, _ in parts]), np.stack([b for _, b in parts]))
    return modules, scale, problems


def _scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def _pattern(patterns: Any, name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", name):
            return value
    return default


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        problems.append(f"peft_type is {kind!r}: only 'LORA' can be served")
    problems += [f"{key} is set: {reason}" for key, reason in REFUSED.items() if config.get(key)]
    if (bias := config.get("bias", "none")) != "none":
        problems.append(f"bias is {bias!r}: trained biases are not served")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        problems.append(f"init_lora_weights is {start!r}: such an adapter belongs to a changed base; convert it first")
    return problems


def _pairs(tensors: Mapping[str, Array]) -> tuple[dict[str, tuple[Array, Array]], list[str]]:
    problems: list[str] = []
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        match = LEAF.match(name)
        if match is None:
            reason = "the magnitude vector of a DoRA adapter" if "magnitude" in name else "not a LoRA matrix"
            problems.append(f"{name}: {reason}")
            continue
        module = match["module"]
        for prefix in PREFIXES:
            if module.startswith(prefix):
                module = module.removeprefix(prefix)
                break
        halves.setdefault(module, {})[match["half"]] = tensor
    pairs = {}
    for module, found in halves.items():
        if len(found) == 2:
            pairs[module] = (found["A"], found["B"])
        else:
            problems.append(f"{module}: has lora_{next(iter(found))} but not its other half")
    return pairs, problems

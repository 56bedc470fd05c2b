"""PEFT's LoRA format, turned into mlx-lm's.

PEFT stores A (r, in) and B (out, r) under the module names of transformers, one module per expert; its scale
is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora. A module whose rank_pattern or alpha_pattern gives
it another scale has the ratio folded into B, because mlx-lm knows one scale per adapter.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import regex

from mlx_router.errors import AdapterTooLarge
from mlx_router.lora.tensors import Array, is_number

MATCH_LIMIT_S = 2.0  # for all keys of rank_pattern or of alpha_pattern and all modules
LEAF = re.compile(r"^(?P<module>.+?)\.lora_(?P<emb>embedding_)?(?P<half>[AB])(?:\.(?!weight)[\w-]+)?(?:\.weight)?$")
EXPERT = re.compile(r"^(?P<head>.+\.mlp)\.experts\.(?P<expert>[0-9]+)\.(?P<proj>\w+)$")
MAX_EXPERTS = 1024  # of one layer; the largest models that are served have 512
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
    tensors: Mapping[str, Array], config: Mapping[str, Any], *, max_bytes: int
) -> tuple[dict[str, tuple[Array, Array]], float, list[str]]:
    """(modules in mlx-lm's layout, scale, problems) of a PEFT adapter.

    Raises AdapterTooLarge where experts that are not in the file would make it larger than `max_bytes`.
    """
    problems = _config_problems(config)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    rslora = bool(config.get("use_rslora"))
    pairs, found = _pairs(tensors)
    ranks = _by_module(config, "rank_pattern", pairs, rank, _is_rank, "a positive integer", problems)
    alphas = _by_module(config, "alpha_pattern", pairs, alpha, is_number, "a finite float32 number", problems)
    scale = 1.0
    if not _is_rank(rank):
        problems.append(f"r is {rank!r}, not a positive integer")
    elif not is_number(alpha):
        problems.append(f"lora_alpha is {alpha!r}, not a finite float32 number")
    else:
        scale = _scale(alpha, rank, rslora)
        if scale == 0.0:
            problems.append(f"lora_alpha is {alpha!r}: an adapter with a scale of 0 changes nothing")
    problems += found
    if problems:
        return {}, scale, problems
    modules: dict[str, tuple[Array, Array]] = {}
    experts: dict[str, dict[int, tuple[Array, Array]]] = {}
    for name, (a, b) in sorted(pairs.items()):
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            problems.append(f"{name}: lora_A {a.shape} and lora_B {b.shape} do not multiply")
            continue
        if a.shape[0] != ranks[name]:
            problems.append(f"{name}: rank {a.shape[0]}, but adapter_config.json says {ranks[name]}")
            continue
        own = _scale(alphas[name], a.shape[0], rslora)
        if own != scale:
            with np.errstate(all="ignore"):
                b = (b * np.float32(own / scale)).astype(np.float32)
            if not np.isfinite(b).all():
                problems.append(f"{name}: with its alpha_pattern, values of lora_B are NaN or infinite")
        if match := EXPERT.match(name):
            if len(match["expert"]) > 4 or int(match["expert"]) >= MAX_EXPERTS:
                problems.append(f"{name[:200]}: there are models with {MAX_EXPERTS} experts, not with more")
                continue
            stack = experts.setdefault(f"{match['head']}.switch_mlp.{match['proj']}", {})
            stack[int(match["expert"])] = (a, b)
        else:
            modules[name] = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T))
    stacked = sum((max(stack) + 1) * sum(half.nbytes for half in stack[max(stack)]) for stack in experts.values())
    if stacked > max_bytes:
        raise AdapterTooLarge(f"its experts would take {stacked} bytes, the limit is {max_bytes}")
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


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1 and is_number(value)


def _by_module(
    config: Mapping[str, Any],
    name: str,
    modules: Iterable[str],
    default: Any,
    valid: Callable[[Any], bool],
    wanted: str,
    problems: list[str],
) -> dict[str, Any]:
    """What rank_pattern or alpha_pattern gives each module, `default` where no key matches the end of its name.

    The keys are regular expressions in a file that anybody may have made, and some take years to match: `regex` has
    re's syntax and gives up in time.
    """
    raw = config.get(name) or {}
    if not isinstance(raw, dict):
        problems.append(f"{name} is {raw!r}, not an object")
        return {}
    patterns = []
    for key, value in raw.items():
        if not valid(value):
            problems.append(f"{name}[{key!r}] is {value!r}, not {wanted}")
        try:
            re.compile(key)  # what PEFT would refuse is refused
            patterns.append((regex.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            problems.append(f"{name}[{key[:200]!r}] is not a pattern: {error}")
    end = time.monotonic() + MATCH_LIMIT_S

    def matches(pattern: regex.Pattern[str], module: str) -> bool:
        left_s = max(end - time.monotonic(), 1e-6)
        return pattern.match(module, timeout=left_s, concurrent=True) is not None

    try:
        return {
            module: next((value for pattern, value in patterns if matches(pattern, module)), default)
            for module in modules
        }
    except TimeoutError:
        problems.append(
            f"{name}: its {len(patterns)} patterns take over {MATCH_LIMIT_S:g} s to match the modules' names"
        )
        return {}


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

"""What the embedded demo's adapters are, and how they are trained; no mlx is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADAPTERS = (
    "mascarade-kicad",
    "mascarade-spice",
    "mascarade-stm32",
    "mascarade-emc",
    "mascarade-embedded",
    "mascarade-platformio",
    "mascarade-freecad",
    "mascarade-dsp",
    "mascarade-iot",
    "mascarade-power",
    "mascarade-components-review",
    "mascarade-coder",
)
REVISED = ("mascarade-kicad",)  # have a second version, to swap in while requests run

# fields of TrainRecipe: a small base needs large steps, every matrix, questions in many forms, and general rows beside
# the new ones, or it forgets
ADAPTER_RECIPE: Mapping[str, Any] = {
    "rank": 16,
    "keys": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ),
    "iters": 72,
    "batch_size": 8,
    "learning_rate": 0.006,
    "warmup": 3,
    "max_tokens": 160,
    "eval_every": 0,
    "replay": 1.67,
    "variants": 2,
}

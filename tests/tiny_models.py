"""Tiny random models and adapters, on disk and in memory, in the formats that mlx-lm reads.

Widths are multiples of 64 so that 4-bit quantization applies. Weights are drawn larger than usual: the outputs of
these models differ by whole nats between tokens, so that a wrong adapter shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlx_router.compute import mx, nn  # first: it preloads the BLAS

# isort: split
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3, qwen3_5_moe, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model, quantize_model

VOCABULARY = 256

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
    },
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-6,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "full_attention_interval": 2,
            "tie_word_embeddings": False,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 64,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    },
}
MODULES = {"qwen3": qwen3, "qwen3_moe": qwen3_moe, "qwen3_5_moe": qwen3_5_moe}


def make_model(kind: str, *, bits: int = 0, seed: int = 0, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of a family, float32 or quantized to `bits`, and its config.json."""
    config = json.loads(json.dumps(CONFIGS[kind]))
    config.get("text_config", config).update(changes)
    mx.random.seed(seed)
    module = MODULES[kind]
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map(lambda weight: weight * 1.5 if weight.ndim >= 2 else weight, model.parameters()))
    if bits:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    model.eval()
    mx.eval(model.parameters())
    return model, config


def save_model(path: Path, kind: str, *, bits: int = 0, seed: int = 0, **changes: Any) -> Path:
    """Write a model directory without a tokenizer: config.json and model.safetensors."""
    model, config = make_model(kind, bits=bits, seed=seed, **changes)
    path.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def save_tokenizer(path: Path) -> Path:
    """Add a byte-sized tokenizer to a model directory: token i is the text `i`, split at white space."""
    words = {str(index): index for index in range(VOCABULARY)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "0"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def open_model(path: Path) -> nn.Module:
    """The model of a directory, evaluated."""
    model, _ = load_model(path)
    return model


def save_adapter(
    path: Path,
    base: Path,
    *,
    rank: int = 8,
    scale: float = 2.0,
    num_layers: int = -1,
    keys: Iterable[str] | None = ("self_attn.q_proj", "self_attn.v_proj"),
    seed: int = 1,
    strength: float = 0.3,
    edit: Callable[[dict[str, mx.array]], None] | None = None,
) -> Path:
    """Write an adapter as `mlx_lm.lora` would, with random B of standard deviation `strength`.

    `edit` may change the tensors, by name, before they are written.
    """
    model = open_model(base)
    parameters: dict[str, Any] = {"rank": rank, "scale": scale, "dropout": 0.0}
    if keys is not None:
        parameters["keys"] = list(keys)
    mx.random.seed(seed)
    model.freeze()
    linear_to_lora_layers(model, num_layers, parameters)
    tensors = dict(tree_flatten(model.trainable_parameters()))
    for name, tensor in tensors.items():
        if name.endswith("lora_b"):
            tensors[name] = strength * mx.random.normal(tensor.shape)
    if edit is not None:
        edit(tensors)
    path.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": parameters}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path

"""Tiny chat models whose answers are known by construction, with a real byte-level BPE tokenizer.

*Scripted*: the next token depends on the last one alone (one-hot embeddings, an output layer that maps each token to
its successor), so a base answers SCRIPT, and an adapter on the output layer makes it begin with another token: a tool
call, a thought, a loop without end.

*Revealing*: the values that attention averages carry the number of the adapter version that computed them. The token
that comes out names the version, and its log-probability falls when a single cached position was computed by another.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

LINES = [
    "Hello there, how are you today?",
    "Where is the station, and when does the next train leave?",
    "Les antennes du circuit imprimé sont trop près du plan de masse.",
    "The resistor is connected to the gate of the transistor.",
]
CALL = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
BROKEN_CALL = '{"name": "get_weather", "arguments": '
EOS = "<|im_end|>"
SPECIAL = [EOS, "<|im_start|>", "<|endoftext|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
PIECES = [CALL, BROKEN_CALL, "#0", "#1", "#2", "#3", "Yes", " indeed", " ok", " mmh", "loop", "first", " END", "ing"]

# each list is a chain of tokens: pieces as they stand, other texts byte by byte; no token occurs in two chains
SCRIPT = ["#0", "Yes", " indeed", "é", "🙂", " END", "ing", EOS]
CHAINS: dict[str, list[str]] = {
    "base": SCRIPT,
    "caller": ["<tool_call>", CALL, "</tool_call>", EOS],
    "thinker": ["<think>", " mmh", "</think>", " ok", EOS],
    "endless": ["loop", "first", "loop"],
    "broken": ["#1", "#2", BROKEN_CALL, "#3", EOS],
}
ANSWER = "#0Yes indeedé🙂 ENDing"

TEMPLATE = """{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}{{ '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('unknown role') }}{%- endif %}
{{- '<|im_start|>' + message.role + '\n' + message.content }}
{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '<tool_call>' + tool_call.name + (tool_call.arguments | tojson) + '</tool_call>' }}
{%- endfor %}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""


@cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE, trained on LINES; every byte is a token, so every text has one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*MARKERS, *PIECES)])
    return made


def token(text: str) -> int:
    """The id of a token that is written out in full."""
    found = tokenizer().token_to_id(text)
    assert found is not None, text
    return found


def _chain(parts: list[str]) -> list[int]:
    chain: list[int] = []
    for part in parts:
        if part in PIECES or part in MARKERS or part in SPECIAL:
            chain.append(token(part))
        else:  # one token a byte
            alphabet = byte_tokens()
            chain += [alphabet[byte] for byte in part.encode()]
    return chain


@cache
def byte_tokens() -> dict[int, int]:
    """byte -> the id of the token that is this byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(rest)}
    return {byte: token(name) for byte, name in names.items()}


HIDDEN = 384
SHARPNESS = 12.0  # logit of the scripted successor; the others have 0


def _config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "vocab_size": HIDDEN,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": token(EOS),
        **changes,
    }


def _weights(config: Mapping[str, Any], embed: np.ndarray, head: np.ndarray) -> dict[str, np.ndarray]:
    hidden, middle, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, values = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": embed,
        "model.norm.weight": np.ones(hidden),
        "lm_head.weight": head,
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            at + "self_attn.q_proj.weight": 0.1 * random.normal(size=(queries, hidden)),
            at + "self_attn.k_proj.weight": 0.1 * random.normal(size=(values, hidden)),
            at + "self_attn.v_proj.weight": np.zeros((values, hidden)),
            at + "self_attn.o_proj.weight": np.zeros((hidden, queries)),
            at + "self_attn.q_norm.weight": np.ones(size),
            at + "self_attn.k_norm.weight": np.ones(size),
            at + "mlp.gate_proj.weight": np.zeros((middle, hidden)),
            at + "mlp.up_proj.weight": np.zeros((middle, hidden)),
            at + "mlp.down_proj.weight": np.zeros((hidden, middle)),
            at + "input_layernorm.weight": np.ones(hidden),
            at + "post_attention_layernorm.weight": np.ones(hidden),
        }
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}


def _save(path: Path, config: Mapping[str, Any], weights: dict[str, np.ndarray]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    return save_tokenizer(path)


def save_tokenizer(path: Path) -> Path:
    """Add tokenizer and chat template to a model directory, whose vocabulary must have HIDDEN rows."""
    tokenizer().save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def save_scripted(path: Path, **changes: Any) -> Path:
    """A base that answers ANSWER to every chat."""
    config = _config(**changes)
    head = np.zeros((HIDDEN, HIDDEN))
    for parts in CHAINS.values():
        chain = _chain(parts)
        for before, after in itertools.pairwise(chain):
            head[after, before] = SHARPNESS / np.sqrt(HIDDEN)
    head[token("#0"), byte_tokens()[0x0A]] = SHARPNESS / np.sqrt(HIDDEN)  # the template ends in a line break
    return _save(path, config, _weights(config, np.eye(HIDDEN), head))


def _save_adapter(path: Path, tensors: Mapping[str, np.ndarray], keys: list[str]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
    save_file(arrays, path / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {"rank": 1, "scale": 1.0, "dropout": 0.0, "keys": keys}
    (path / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters})
    )
    return path


def save_starter(path: Path, first: str) -> Path:
    """An adapter of the scripted base whose answers begin with the token `first`, and follow its chain."""
    a, b = np.zeros((HIDDEN, 1)), np.zeros((1, HIDDEN))
    a[byte_tokens()[0x0A], 0] = 1.0
    b[0, token(first)] = 2 * SHARPNESS / np.sqrt(HIDDEN)
    return _save_adapter(path, {"lm_head.lora_a": a, "lm_head.lora_b": b}, ["lm_head"])


REVEAL_HIDDEN = 64
CODES = 32  # versions that can be told apart


def save_revealing(path: Path, **changes: Any) -> Path:
    """A base whose every token is reveal_token(None), and whose adapters make it reveal_token(version)."""
    config = _config(hidden_size=REVEAL_HIDDEN, num_attention_heads=1, **changes)
    embed = np.zeros((HIDDEN, REVEAL_HIDDEN))
    embed[:, 0] = 1.0
    head = np.zeros((HIDDEN, REVEAL_HIDDEN))
    # A version's values add 8 at its own feature. With one position in 80 computed otherwise, less than 7.9 is
    # left of it, and the base's token comes out.
    head[reveal_token(None), 0] = 0.1 * 7.9
    for version in range(CODES):
        head[reveal_token(version), CODES + version] = 0.1
    weights = _weights(config, embed, head)
    out = weights["model.layers.0.self_attn.o_proj.weight"]
    for version in range(CODES):
        out[CODES + version, version] = 1.0
    return _save(path, config, weights)


def reveal_token(version: int | None) -> int:
    """The only token that a version produces."""
    return byte_tokens()[ord("z")] if version is None else byte_tokens()[ord("A") + version]


def save_version(path: Path, version: int) -> Path:
    """The adapter number `version` of the revealing base."""
    at = "model.layers.0.self_attn.v_proj."
    a, b = np.zeros((REVEAL_HIDDEN, 1)), np.zeros((1, 64))
    a[0, 0] = 1.0
    b[0, version] = 1.0
    return _save_adapter(path, {at + "lora_a": a, at + "lora_b": b}, ["self_attn.v_proj"])

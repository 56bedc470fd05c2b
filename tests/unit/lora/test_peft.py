"""PEFT's format: the same update to the weights, as PEFT defines it, comes out in mlx-lm's layout."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_adapters
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mlx_router.compute import mx
from mlx_router.errors import AdapterError, AdapterTooLarge
from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.convert import convert_peft
from mlx_router.lora.load import AdapterFiles, read_adapter
from tests.tiny_models import open_model, save_model

ROOT = "base_model.model.model.layers.0."
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(max_size=4)
JSON = PLAIN | st.lists(PLAIN, max_size=3)


def matrix(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(folder: Path, tensors: dict[str, NDArray[np.float32]], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def pair(module: str, rank: int = 4, inputs: int = 6, outputs: int = 10, seed: int = 1) -> dict[str, Any]:
    return {
        f"{ROOT}{module}.lora_A.weight": matrix(rank, inputs, seed=seed),
        f"{ROOT}{module}.lora_B.weight": matrix(outputs, rank, seed=seed + 1),
    }


def update(adapter: AdapterFiles, name: str) -> NDArray[np.float32]:
    """The change of a Linear's weight (out, in)."""
    found = adapter.modules[name]
    return np.asarray(adapter.scale * (found.a @ found.b).T)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 1}, 0.25),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 16}}, 4.0),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 16}, "use_rslora": True}, 8.0),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"alpha_pattern": {"^model.layers.[0-9].*q_proj$": 16}}, 4.0),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.(k|q)_proj": 16}}, 4.0),
        ({"alpha_pattern": {"^layers.0.self_attn.q_proj": 16}}, 2.0),
        ({"alpha_pattern": {"k_proj": 16}}, 2.0),
    ],
)
def test_the_update_is_scale_b_a(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    tensors = pair("self_attn.q_proj")
    adapter = read_adapter(write(tmp_path, tensors, **config))
    a, b = tensors.values()
    np.testing.assert_allclose(update(adapter, "model.layers.0.self_attn.q_proj"), scale * (b @ a), rtol=1e-5)
    assert (adapter.format, adapter.num_layers, adapter.keys) == ("peft", None, None)


def test_adapter_names_in_tensor_names_are_skipped(tmp_path: Path) -> None:
    tensors = {name.replace("lora_A", "lora_A.default"): value for name, value in pair("self_attn.q_proj").items()}
    tensors = {name.replace("lora_B", "lora_B.default"): value for name, value in tensors.items()}
    assert list(read_adapter(write(tmp_path, tensors)).modules) == ["model.layers.0.self_attn.q_proj"]


def test_experts_are_stacked(tmp_path: Path) -> None:
    tensors = pair("mlp.experts.0.up_proj") | pair("mlp.experts.2.up_proj", seed=5)
    stacked = read_adapter(write(tmp_path, tensors)).modules["model.layers.0.mlp.switch_mlp.up_proj"]
    assert stacked.a.shape == (3, 4, 6)
    assert stacked.b.shape == (3, 10, 4)
    assert np.array_equal(stacked.a[2], tensors[f"{ROOT}mlp.experts.2.up_proj.lora_A.weight"])
    assert not stacked.b[1].any()  # an expert that was not trained


@pytest.mark.parametrize("number", ["1024", "3000000", "9" * 5000])
def test_implausible_experts_are_refused_before_they_are_made(tmp_path: Path, number: str) -> None:
    tensors = pair("mlp.experts.0.up_proj") | pair(f"mlp.experts.{number}.up_proj", seed=5)
    with pytest.raises(AdapterError, match="expert"):
        read_adapter(write(tmp_path, tensors))


def test_experts_that_would_take_more_than_a_file_may_are_refused(tmp_path: Path) -> None:
    tensors = pair("mlp.experts.1000.up_proj", inputs=60)
    with pytest.raises(AdapterTooLarge, match="1121120 bytes"):
        read_adapter(write(tmp_path, tensors), max_bytes=2**20)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"]
        ),
        JSON | st.dictionaries(st.sampled_from(["q_proj", "[", ".*"]), PLAIN),
    )
)
def test_arbitrary_settings_never_raise_anything_else(tmp_path: Path, config: dict[str, Any]) -> None:
    with contextlib.suppress(AdapterError):
        read_adapter(write(tmp_path, pair("self_attn.q_proj"), **config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is set"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": 0, "alpha_pattern": {"q_proj": 8}}, "lora_alpha is 0"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]"),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern\['q_proj'\] is '4'"),
        ({"rank_pattern": {"[": 4}}, r"rank_pattern\['\['\] is not a pattern"),
        ({"rank_pattern": {"a{9999999999}": 4}}, "is not a pattern"),
        ({"rank_pattern": {"(?<=_*)q_proj": 4}}, "is not a pattern"),
        ({"alpha_pattern": "q_proj"}, "alpha_pattern is 'q_proj'"),
        ({"alpha_pattern": {"q_proj": 10**400}}, r"alpha_pattern\['q_proj'\] is 1000"),
        ({"alpha_pattern": {"q_proj": 1e38}, "lora_alpha": 1e-30}, "NaN or infinite"),
        ({"r": 16}, "rank 4, but adapter_config.json says 16"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read_adapter(write(tmp_path, pair("self_attn.q_proj"), **config))


def test_a_key_that_takes_for_ever_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_router.lora.peft.MATCH_LIMIT_S", 0.05)
    with pytest.raises(AdapterError, match=r"rank_pattern: its 1 patterns take over 0\.05 s") as caught:
        read_adapter(write(tmp_path, pair("self_attn.q_proj"), rank_pattern={r"(([a-z._0-9]|.)+)+\d": 4}))
    assert str(tmp_path) in caught.value.message


def test_strange_tensors_are_all_named(tmp_path: Path) -> None:
    tensors = pair("self_attn.q_proj")
    tensors[f"{ROOT}self_attn.q_proj.lora_magnitude_vector"] = matrix(10)
    tensors["base_model.model.lm_head.weight"] = matrix(4, 4)
    del tensors[f"{ROOT}self_attn.q_proj.lora_B.weight"]
    with pytest.raises(AdapterError) as caught:
        read_adapter(write(tmp_path, tensors))
    for part in ("magnitude vector of a DoRA adapter", "lm_head.weight: not a LoRA matrix", "has lora_A but not"):
        assert part in caught.value.message


def peft_for(base: Path, folder: Path) -> Path:
    """A PEFT adapter, two ranks, for the tiny qwen3 of `base`."""
    tensors = {}
    for layer in range(2):
        for module, rank, inputs, outputs in (("self_attn.q_proj", 4, 64, 128), ("mlp.up_proj", 2, 64, 128)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = 0.2 * matrix(rank, inputs, seed=layer)
            tensors[f"{name}.lora_B.weight"] = 0.2 * matrix(outputs, rank, seed=layer + 7)
    return write(folder, tensors, rank_pattern={"up_proj": 2})


def test_a_converted_adapter_is_the_same_in_stock_mlx_lm_and_in_the_bank(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "qwen3")
    source = peft_for(base, tmp_path / "peft")
    bank = AdapterBank(open_model(base))
    converted = convert_peft(source, tmp_path / "mlx", modules=bank.targets)
    original = read_adapter(source)
    assert (converted.format, converted.rank) == ("mlx-lm", 4)
    assert converted.config["converted_from"]["digest"] == original.digest
    assert converted.config["peft"]["rank_pattern"] == {"up_proj": 2}

    tokens = mx.array([[1, 2, 3, 4, 5]])
    stock = load_adapters(open_model(base), str(tmp_path / "mlx"))
    stock.eval()
    expected = stock(tokens)
    for files in (original, converted):
        lease = bank.acquire(bank.load(files))
        assert mx.allclose(bank.wrapped(tokens, cache=bank.make_cache(lease)), expected, atol=1e-4)
    assert not mx.allclose(open_model(base)(tokens), expected, atol=0.1)


def test_names_are_kept_without_a_base_but_for_the_multimodal_prefix(tmp_path: Path) -> None:
    tensors = {name.replace("model.layers", "model.language_model.layers"): value for name, value in pair("q").items()}
    converted = convert_peft(write(tmp_path / "peft", tensors), tmp_path / "mlx")
    assert list(converted.modules) == ["language_model.model.layers.0.q"]


def test_only_peft_is_converted(tmp_path: Path) -> None:
    converted = convert_peft(write(tmp_path / "peft", pair("self_attn.q_proj")), tmp_path / "mlx")
    with pytest.raises(AdapterError, match="already"):
        convert_peft(converted.path, tmp_path / "again")

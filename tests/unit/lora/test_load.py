"""Reading adapter directories: what is accepted, and that everything wrong is named at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlx_router.errors import AdapterError, AdapterForbidden, AdapterNotFound, AdapterTooLarge
from mlx_router.lora import files as files_module
from mlx_router.lora.files import adapter_digest
from mlx_router.lora.load import read_adapter
from mlx_router.lora.tensors import parse_safetensors

Q = "model.layers.0.self_attn.q_proj"
Make = Callable[..., Path]


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A small adapter directory; keyword arguments change adapter_config.json."""
    random = np.random.default_rng(0)
    if tensors is None:
        tensors = {
            f"{Q}.lora_a": random.normal(size=(6, 2)).astype(np.float32),
            f"{Q}.lora_b": random.normal(size=(2, 8)).astype(np.float32),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    settings = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_reads_mlx_lm_format(tmp_path: Path) -> None:
    folder = write(tmp_path / "sql")
    adapter = read_adapter(folder)
    weights = (folder / "adapters.safetensors").read_bytes()
    config = (folder / "adapter_config.json").read_bytes()
    assert adapter.name == "sql"
    assert (adapter.format, adapter.rank, adapter.scale, adapter.num_layers) == ("mlx-lm", 2, 2.0, -1)
    assert adapter.keys == ("self_attn.q_proj",)
    assert adapter.digest == f"sha256:{hashlib.sha256(weights + config).hexdigest()}" == adapter_digest(folder)
    assert adapter.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert adapter.modules[Q].a.shape == (6, 2)
    assert adapter.modules[Q].b.shape == (2, 8)


def test_sha256_may_be_the_digest_or_that_of_the_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    adapter = read_adapter(folder)
    for value in (adapter.digest, adapter.digest.removeprefix("sha256:"), adapter.weights_sha256):
        assert read_adapter(folder, sha256=value).digest == adapter.digest
    with pytest.raises(AdapterError, match=r"sha256 is \w+, expected 00"):
        read_adapter(folder, sha256="00" * 32)


def test_bfloat16_is_widened_exactly() -> None:
    bits = np.array([0x3F80, 0xC040, 0x0000, 0x7F80], dtype="<u2")  # 1, -3, 0, inf
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bits.tobytes()
    tensor = parse_safetensors(memoryview(data), "x")["x"]
    assert tensor.dtype == np.float32
    assert tensor.tolist() == [[1.0, -3.0], [0.0, np.inf]]


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    bad = np.ones((6, 2), np.float32)
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    folder = write(
        tmp_path / "a",
        {
            f"{Q}.lora_a": bad,
            f"{Q}.lora_b": np.ones((2, 8), np.float32),
            "model.layers.1.self_attn.q_proj.lora_a": np.ones((6, 2), np.float32),
            "model.layers.2.self_attn.q_proj.lora_a": np.ones((6, 4), np.float32),
            "model.layers.2.self_attn.q_proj.lora_b": np.ones((4, 8), np.float32),
            "model.layers.3.self_attn.q_proj.lora_a": np.ones((6, 2), np.float32),
            "model.layers.3.self_attn.q_proj.lora_b": np.ones((3, 8), np.float32),
            "model.layers.4.self_attn.q_proj.m": np.ones(8, np.float32),
            "model.norm.weight": np.ones(8, np.float32),
        },
        fine_tune_type="dora",
        num_layers="all",
    )
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder, sha256="11" * 32)
    message = caught.value.message
    for part in (
        "(9)",
        "sha256 is",
        "fine_tune_type is 'dora'",
        "num_layers is 'all'",
        f"{Q}.lora_a: 2 of 12 values are NaN or infinite",
        "model.layers.1.self_attn.q_proj: has lora_a but not its other half",
        "model.layers.2.self_attn.q_proj: rank 4, but adapter_config.json says 2",
        "model.layers.3.self_attn.q_proj: lora_a (6, 2) and lora_b (3, 8) do not multiply",
        "model.layers.4.self_attn.q_proj.m: the magnitude vector of a DoRA adapter",
        "model.norm.weight: neither lora_a nor lora_b",
    ):
        assert part in message


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_kinds_of_fine_tuning_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(AdapterError, match=f"fine_tune_type is '{kind}'"):
        read_adapter(write(tmp_path / "a", fine_tune_type=kind))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "no lora_parameters"),
        ({"rank": 2}, "scale is None"),
        ({"rank": 0, "scale": 1.0}, "rank is 0"),
        ({"rank": 2, "scale": float("nan")}, "scale is nan"),
        ({"rank": 2, "scale": 10**400}, "scale is 1000"),
        ({"rank": 2, "scale": 1e39}, r"scale is 1e\+39"),
        ({"rank": 2, "scale": 1.0, "keys": "q_proj"}, "keys is 'q_proj'"),
    ],
)
def test_bad_lora_parameters(tmp_path: Path, parameters: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read_adapter(write(tmp_path / "a", lora_parameters=parameters))


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_a": np.ones((6, 2), np.float32), f"{Q}.lora_b": np.zeros((2, 8), np.float32)}
    with pytest.raises(AdapterError, match="every lora_b is zero"):
        read_adapter(write(tmp_path / "a", tensors))


def test_large_finite_values_are_finite(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_a": np.full((6, 2), 1e30, np.float32), f"{Q}.lora_b": np.ones((2, 8), np.float32)}
    assert read_adapter(write(tmp_path / "a", tensors)).rank == 2


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], r"no adapters.safetensors \(or adapter_model.safetensors\) and no adapter_config.json"),
        (["adapter_config.json"], "no adapters.safetensors"),
        (["adapters.safetensors"], "no adapter_config.json"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, present: list[str], message: str) -> None:
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(AdapterNotFound, match=message):
        read_adapter(tmp_path)


def test_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    good, secret = write(root / "good"), write(outside / "secret")
    assert read_adapter(good, roots=[tmp_path / "other", root]).name == "good"
    (root / "inner").symlink_to(good)
    assert read_adapter(root / "inner", roots=[root]).path == good
    (root / "leaves").symlink_to(secret)
    half = write(root / "half")
    (half / "adapters.safetensors").unlink()
    (half / "adapters.safetensors").symlink_to(secret / "adapters.safetensors")
    for path in (secret, root / "leaves", half, root / ".." / "outside" / "secret", outside / "does not exist"):
        with pytest.raises(AdapterForbidden, match="outside the adapter roots"):
            read_adapter(path, roots=[root])
    with pytest.raises(AdapterForbidden, match="none configured"):
        read_adapter(good, roots=[])
    with pytest.raises(AdapterNotFound):
        read_adapter(root / "nothing", roots=[root])


def test_size_limit(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    size = (folder / "adapters.safetensors").stat().st_size
    assert read_adapter(folder, max_bytes=size).rank == 2
    with pytest.raises(AdapterTooLarge, match=f"has {size} bytes, the limit is {size - 1}"):
        read_adapter(folder, max_bytes=size - 1)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "adapters.safetensors").unlink()
    os.mkfifo(folder / "adapters.safetensors")
    with pytest.raises(AdapterError, match="not a regular file"):
        read_adapter(folder)


def test_a_changed_file_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    monkeypatch.setattr(files_module.time, "time", lambda: 2.0**40)  # the file looks old enough to be remembered
    first = read_adapter(folder)
    assert read_adapter(folder).digest == first.digest
    weights = folder / "adapters.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # same size, another last value
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = read_adapter(folder)
    assert second.digest != first.digest
    assert second.digest == adapter_digest(folder)


def test_known_files_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    monkeypatch.setattr(files_module.time, "time", lambda: 2.0**40)
    first = read_adapter(folder)
    monkeypatch.setattr("mlx_router.lora.load._health", lambda modules: ["examined again"])
    assert read_adapter(folder).digest == first.digest
    monkeypatch.setattr(files_module.time, "time", lambda: 0.0)  # and a file from just now is always looked at
    with pytest.raises(AdapterError, match="examined again"):
        read_adapter(folder)


def test_truncation_at_every_length_is_an_adapter_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    weights = folder / "adapters.safetensors"
    data = weights.read_bytes()
    for length in {0, 4, 8, 9, 40, len(data) // 2, len(data) - 1}:
        weights.write_bytes(data[:length])
        with pytest.raises(AdapterError):
            read_adapter(folder)


def test_tensors_that_share_their_data_are_refused() -> None:
    """A file of 1 MB whose thousand entries name the same bytes would become a gigabyte."""
    entry = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(AdapterError, match="16 bytes of 8"):
        parse_safetensors(memoryview(data), "x")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2**64 - 1))
def test_arbitrary_bytes_never_raise_anything_else(body: bytes, length: int) -> None:
    for data in (body, length.to_bytes(8, "little") + body, len(body).to_bytes(8, "little") + body):
        with contextlib.suppress(AdapterError):
            parse_safetensors(memoryview(data), "fuzz")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(max_size=4)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3))
def test_arbitrary_headers_never_raise_anything_else(header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    try:
        parse_safetensors(memoryview(len(text).to_bytes(8, "little") + text + bytes(16)), "fuzz")
    except AdapterError as error:
        error.message.encode()  # it goes into answers and logs


def test_a_name_that_cannot_be_printed_is_escaped() -> None:
    header = json.dumps({"\ud800\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(AdapterError) as caught:
        parse_safetensors(memoryview(len(header).to_bytes(8, "little") + header), "x")
    assert caught.value.message.encode().endswith(b"'\\ud800\\n': no name of a tensor")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    top=st.dictionaries(st.sampled_from(["fine_tune_type", "num_layers", "lora_parameters"]), JSON),
    parameters=st.dictionaries(st.sampled_from(["rank", "scale", "dropout", "keys"]), JSON),
)
def test_arbitrary_settings_never_raise_anything_else(
    tmp_path: Path, top: dict[str, Any], parameters: dict[str, Any]
) -> None:
    with contextlib.suppress(AdapterError):
        read_adapter(write(tmp_path / "a", **{"lora_parameters": {"rank": 2, "scale": 2.0, **parameters}, **top}))

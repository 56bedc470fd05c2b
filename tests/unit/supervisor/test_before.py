"""What is looked at before anything starts: the lock, ports, memory, names."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_router.config import Config, SpecialistConfig, SupervisorConfig
from mlx_router.config.known import known_names
from mlx_router.errors import SupervisorError
from mlx_router.supervisor.lock import hold, holder
from mlx_router.supervisor.memory import check_memory, estimate
from mlx_router.supervisor.ports import check_free, free_ports
from mlx_router.supervisor.spec import ChildSpec, child_specs


def test_one_holder_and_everybody_knows_who(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with hold(tmp_path, "a.toml") as me:
        found = holder(tmp_path)
        assert found == me
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(SupervisorError, match=rf"already served by process {os.getpid()}, since .* with a\.toml"):
            hold(tmp_path, None).__enter__()
        assert holder(tmp_path) == me  # the refused one has not harmed it
    assert holder(tmp_path) is None


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlx_router.supervisor.lock import hold\n"
        f"with hold(Path({str(tmp_path)!r}), None): print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        assert child.stdout.readline() == b"held\n"
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == child.pid
        child.kill()
        child.wait(10)
    assert holder(tmp_path) is None
    with hold(tmp_path, None):
        pass


def spec(name: str, port: int) -> ChildSpec:
    return ChildSpec(name=name, kind="specialist", argv=(), host="127.0.0.1", port=port, drain_s=1.0)


def test_every_port_in_use_is_named_with_its_owner() -> None:
    ports = free_ports(["a", "b", "c"])
    assert len(set(ports.values())) == 3
    check_free([spec(name, port) for name, port in ports.items()])
    with socket.create_server(("127.0.0.1", ports["a"])), socket.create_server(("127.0.0.1", ports["b"])):
        with pytest.raises(SupervisorError) as caught:
            check_free([spec(name, port) for name, port in ports.items()])
        lines = caught.value.message.splitlines()
        assert len(lines) == 3
        assert f"a: port {ports['a']} on 127.0.0.1 is in use" in lines[1]
        if sys.platform == "linux":
            assert f"process {os.getpid()}" in lines[1]


def test_an_address_that_is_not_ours_is_a_problem_too() -> None:
    with pytest.raises(SupervisorError, match="cannot be used"):
        check_free([replace(spec("a", 1), host="192.0.2.1")])


def base(folder: Path, *, bits: int = 0) -> Path:
    """Two projections, an embedding and an expert, without their bytes."""
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (64, 16 if bits else 128),
        "model.layers.0.mlp.down_proj.weight": (128, 512),
        "model.embed_tokens.weight": (1000, 128),
        "model.layers.0.mlp.switch_mlp.up_proj.weight": (8, 64, 128),
    }
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    (folder / "config.json").write_text(json.dumps({"quantization": {"bits": bits}} if bits else {}))
    return folder


def config(tmp_path: Path, base: str, **more: int) -> Config:
    item = SpecialistConfig(name="a", port=1, base=base, slots=3, max_rank=8, prompt_cache_bytes=1000, **more)
    return Config(home=tmp_path, specialists=(item,))


def test_memory_is_weights_bank_cache_and_process(tmp_path: Path) -> None:
    need = estimate(config(tmp_path, str(base(tmp_path / "base"))))[0]
    assert need.weights_bytes == 4 * (64 * 128 + 128 * 512 + 1000 * 128 + 8 * 64 * 128)
    assert need.bank_bytes == (64 + 128 + 128 + 512) * 8 * 4 * 4  # sides x rank x slots with the base's x float32
    assert need.prompt_cache_bytes == 1000
    packed = estimate(config(tmp_path, str(base(tmp_path / "packed", bits=4))))[0]
    assert packed.bank_bytes == (64 + 128 + 128 + 512 * 8) * 8 * 4 * 4  # eight inputs in each packed word
    assert estimate(config(tmp_path, str(tmp_path / "base"), bank_bytes=5))[0].bank_bytes == 5


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path) -> None:
    settings = config(tmp_path, str(base(tmp_path / "base")))
    total = sum(need.total_bytes for need in check_memory(settings, 2**40))
    check_memory(settings, total)
    with pytest.raises(SupervisorError) as caught:
        check_memory(settings, total - 1)
    assert "are needed" in caught.value.message
    assert "a: 401 MiB = 1 MiB weights" in caught.value.message
    check_memory(replace(settings, supervisor=SupervisorConfig(memory_check=False)), 0)


def test_a_base_that_is_not_there_and_a_damaged_file(tmp_path: Path) -> None:
    need = estimate(config(tmp_path, "owner/model"))[0]
    assert "owner/model is not on this disk yet" in need.describe()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"\xff" * 100)
    assert estimate(config(tmp_path, str(tmp_path / "bad")))[0].weights_bytes == 100


def test_names_come_from_manifests_installed_adapters_and_versions(tmp_path: Path) -> None:
    mine = tmp_path / "adapters" / "my-adapter"
    mine.mkdir(parents=True)
    (mine / "adapter.toml").write_text('domains = ["basket-weaving"]')
    version = tmp_path / "router" / "v0001"
    version.mkdir(parents=True)
    (version / "meta.json").write_text('{"domains": ["zoology"]}')
    known = known_names(tmp_path)
    assert {"my-adapter", "mascarade-kicad"} <= known.adapters
    assert {"basket-weaving", "zoology", "kicad-pcb", "chat-fr"} <= known.domains
    assert "_outside" not in known.domains


def test_children_of_a_configuration(tmp_path: Path) -> None:
    settings = replace(config(tmp_path, "demo"), path=tmp_path / "x.toml")
    specialist, gateway = child_specs(settings, 77, {"gateway": 5})
    assert (specialist.name, gateway.name) == ("a", "gateway")
    assert list(specialist.argv[1:]) == [
        *("-m", "mlx_router", "--home", str(tmp_path), "--config", str(tmp_path / "x.toml")),
        *("specialist", "a", "--parent-pid", "77"),
    ]
    assert gateway.environment["MLX_ROUTER_PORTS"] == "gateway=5"
    assert replace(gateway, host="0.0.0.0").url == "http://127.0.0.1:9300"
    assert replace(gateway, host="::").url == "http://[::1]:9300"


def test_ports_of_the_environment_reach_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ROUTER_PORTS", "gateway=9400, a=9460")
    assert child_specs(config(tmp_path, "demo"), 77, {})[0].environment["MLX_ROUTER_PORTS"] == "gateway=9400,a=9460"
    _, gateway = child_specs(config(tmp_path, "demo"), 77, {"gateway": 5})
    assert gateway.environment["MLX_ROUTER_PORTS"] == "gateway=5,a=9460"


def test_the_gateways_heap_is_kept_small_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    specialist, gateway = child_specs(config(tmp_path, "demo"), 77, {})
    assert gateway.environment["MALLOC_ARENA_MAX"] == "2"
    assert gateway.environment["MALLOC_TRIM_THRESHOLD_"] == "1"
    assert "MALLOC_ARENA_MAX" not in specialist.environment


def test_only_a_new_process_takes_up_a_new_base_and_a_running_one_a_new_list(tmp_path: Path) -> None:
    settings = config(tmp_path, "demo")
    item = settings.specialists[0]

    def key(changed: SpecialistConfig) -> object:
        return child_specs(replace(settings, specialists=(changed,)), 1, {})[0].settings

    assert key(replace(item, adapters=("b",), pinned=("b",))) == key(item)
    assert key(replace(item, base="other")) != key(item)
    assert key(replace(item, port=2)) != key(item)

"""What the routing table is fed with."""

from __future__ import annotations

from pathlib import Path

from mlx_router.config import Config, SpecialistConfig
from mlx_router.gateway.catalog import adapter_entries
from mlx_router.gateway.routes import build_routes
from mlx_router.lora.registry import Registry
from mlx_router.specialist.registered import registered
from tests.adapter_files import write_adapter


def test_domains_move_to_the_adapter_that_stands_in(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    entries = {entry.name: entry for entry in adapter_entries(config)}
    assert len(entries) == 30
    assert entries["mascarade-cpp"].domains == ("cpp",)
    assert entries["mascarade-cpp"].status == "missing"
    Registry(tmp_path).install("mascarade-coder", write_adapter(tmp_path / "w"))
    entries = {entry.name: entry for entry in adapter_entries(config)}
    assert entries["mascarade-cpp"].domains == ()
    assert entries["mascarade-coder"].domains[0] == "python"
    assert "cpp" in entries["mascarade-coder"].domains
    routes = build_routes(config, entries.values())
    assert routes.destination("cpp").name == "mascarade-coder"
    assert routes.destination("emc").name == "mascarade-emc"
    assert routes.destination("general").kind == "base"


def test_a_specialist_knows_its_adapters_installed_or_not(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    registry = Registry(tmp_path)
    done = registry.install("mascarade-emc", write_adapter(tmp_path / "w"))
    registry.quarantine("mascarade-emc", "worse than the base")
    known = {item.name: item for item in registered(config, SpecialistConfig(name="hardware", port=1))}
    assert len(known) == 13
    assert (known["mascarade-emc"].path, known["mascarade-emc"].sha256) == (done.path, done.digest)
    assert known["mascarade-emc"].quarantined == "worse than the base"
    assert known["mascarade-dsp"].path is None
    named = registered(config, SpecialistConfig(name="x", port=1, adapters=("mascarade-dsp",), pinned=("nobody",)))
    assert [item.name for item in named] == ["mascarade-dsp", "nobody"]

"""Installed weights: published whole, one current, quarantined by version; which adapter answers a domain."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlx_router.errors import AdapterError, AdapterNotFound
from mlx_router.lora import installed
from mlx_router.lora.files import adapter_digest
from mlx_router.lora.manifest import Manifest, read_manifests
from mlx_router.lora.registry import Registry, routes_from_manifests
from tests.adapter_files import write_adapter, write_manifest, write_peft


def make(tmp_path: Path, *extra: tuple[str, list[str], str]) -> Registry:
    shipped = tmp_path / "shipped"
    for name, domains, text in extra or (("one", ["emc"], ""),):
        write_manifest(shipped, name, domains, text)
    return Registry(tmp_path / "home", read_manifests(shipped))


def test_an_adapter_without_weights_is_missing(tmp_path: Path) -> None:
    record = make(tmp_path).find("one")
    assert (record.status, record.path, record.sha256, record.versions) == ("missing", None, None, ())
    assert record.reason == "no weights are installed"


def test_who_waits_for_a_removal_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(tmp_path)
    registry.install("one", write_adapter(tmp_path / "w1", 1))
    source = write_adapter(tmp_path / "w2", 2)
    adding = threading.Thread(target=lambda: registry.install("one", source))
    waits = threading.Event()
    flock, rmtree = fcntl.flock, shutil.rmtree

    def noted_flock(file: object, operation: int) -> None:
        if threading.current_thread() is adding:
            waits.set()
        flock(file, operation)  # type: ignore[arg-type]

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if not waits.is_set():
            adding.start()
            assert waits.wait(10)
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(fcntl, "flock", noted_flock)
    monkeypatch.setattr(shutil, "rmtree", removing)
    registry.remove("one")
    adding.join(10)
    record = registry.find("one")
    assert record.path is not None
    assert adapter_digest(record.path) == record.sha256 == adapter_digest(source)


def test_a_removal_leaves_no_folder(tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.install("one", write_adapter(tmp_path / "w1", 1))
    registry.pin("one", True)
    registry.remove("one")
    assert list((tmp_path / "home" / "adapters").iterdir()) == []


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="did you mean 'one'"):
        make(tmp_path).find("onee")


def test_install_publishes_a_version_and_makes_it_current(tmp_path: Path) -> None:
    registry = make(tmp_path)
    source = write_adapter(tmp_path / "w", rank=4)
    done = registry.install("one", source, provenance={"by": "hand"}, base="demo")
    record = registry.find("one")
    assert record.path == done.path == tmp_path / "home" / "adapters" / "one" / adapter_digest(source)[7:19]
    assert (record.status, record.sha256, record.version) == ("active", adapter_digest(source), done.path.name)
    assert (record.manifest.rank, record.manifest.base, record.manifest.source) == (4, "demo", "local")
    assert record.manifest.targets == ("self_attn.q_proj",)
    assert adapter_digest(done.path) == done.digest
    assert (done.previous, done.new) == (None, True)
    assert (done.path / "provenance.json").is_file()
    assert not list((tmp_path / "home" / "adapters" / "one").glob(".draft-*"))


def test_a_second_version_and_the_way_back(tmp_path: Path) -> None:
    registry = make(tmp_path)
    first = registry.install("one", write_adapter(tmp_path / "w1", 1))
    second = registry.install("one", write_adapter(tmp_path / "w2", 2))
    assert second.previous == first.digest
    assert registry.find("one").sha256 == second.digest
    assert set(registry.find("one").versions) == {first.path.name, second.path.name}
    registry.activate("one", first.digest)
    assert registry.find("one").sha256 == first.digest
    again = registry.install("one", write_adapter(tmp_path / "w2", 2), activate=False)
    assert again.new is False
    assert registry.find("one").sha256 == first.digest
    with pytest.raises(AdapterNotFound, match="no one version 'ffff'"):
        registry.activate("one", "ffff")


def test_a_failed_install_changes_nothing(tmp_path: Path) -> None:
    registry = make(tmp_path)
    done = registry.install("one", write_adapter(tmp_path / "w1", 1))
    before = sorted(path.name for path in done.path.parent.iterdir())
    with pytest.raises(AdapterError, match="every lora_b is zero"):
        registry.install("one", write_adapter(tmp_path / "w2", 2, b=0.0))
    with pytest.raises(AdapterNotFound, match=r"has no adapters\.safetensors"):
        registry.install("one", tmp_path)
    assert registry.find("one").sha256 == done.digest
    assert sorted(path.name for path in done.path.parent.iterdir()) == before


def test_the_manifests_sha256_must_be_met_unless_the_weights_are_new_on_purpose(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "w")
    registry = make(tmp_path, ("one", ["emc"], f'sha256 = "{"0" * 64}"\n'))
    with pytest.raises(AdapterError, match=f"{tmp_path / 'w'} cannot be used(.|\n)*expected 0000"):
        registry.install("one", source)
    assert registry.install("one", source, verify=False).new
    right = make(tmp_path / "b", ("one", ["emc"], f'sha256 = "{adapter_digest(source)[7:]}"\n'))
    assert right.install("one", source).new


def test_a_damaged_version_is_installed_anew(tmp_path: Path) -> None:
    registry = make(tmp_path)
    source = write_adapter(tmp_path / "w")
    done = registry.install("one", source)
    (done.path / "adapters.safetensors").write_bytes(b"damaged")
    assert registry.install("one", source).new
    assert adapter_digest(done.path) == done.digest


def test_leftovers_of_a_crash_are_invisible_and_swept(tmp_path: Path) -> None:
    registry = make(tmp_path)
    done = registry.install("one", write_adapter(tmp_path / "w1", 1))
    left = done.path.parent / ".draft-dead"
    shutil.copytree(done.path, left)
    assert registry.find("one").versions == (done.path.name,)
    registry.install("one", write_adapter(tmp_path / "w2", 2))
    assert not left.exists()


def test_a_crash_before_the_switch_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(tmp_path)
    done = registry.install("one", write_adapter(tmp_path / "w1", 1))

    def crash(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installed, "sync", crash)
    with pytest.raises(AdapterError, match="No space left on device"):
        registry.install("one", write_adapter(tmp_path / "w2", 2))
    assert registry.find("one").sha256 == done.digest


def test_quarantine_belongs_to_a_version(tmp_path: Path) -> None:
    registry = make(tmp_path)
    first = registry.install("one", write_adapter(tmp_path / "w1", 1))
    registry.quarantine("one", "worse than the base")
    record = registry.find("one")
    assert (record.status, record.reason) == ("quarantined", "worse than the base")
    registry.install("one", write_adapter(tmp_path / "w2", 2))
    assert registry.find("one").status == "active"
    registry.activate("one", first.path.name)
    assert registry.find("one").status == "quarantined"
    registry.release("one")
    assert registry.find("one").status == "active"


def test_a_manifests_quarantine_ends_with_other_weights_when_it_names_its_own(tmp_path: Path) -> None:
    quarantined = 'status = "quarantined"\nreason = "ruins arithmetic"\n'
    always = make(tmp_path / "a", ("one", ["emc"], quarantined))
    always.install("one", write_adapter(tmp_path / "w"))
    assert always.find("one").status == "quarantined"
    named = make(tmp_path / "b", ("one", ["emc"], quarantined + f'sha256 = "{"0" * 64}"\n'))
    named.install("one", write_adapter(tmp_path / "w"), verify=False)
    assert named.find("one").status == "active"


def test_pin_and_check_figures_are_kept(tmp_path: Path) -> None:
    registry = make(tmp_path, ("one", ["emc"], '[evaluation]\nbase = "demo"\n'))
    assert registry.find("one").manifest.evaluation == {"base": "demo"}
    done = registry.install("one", write_adapter(tmp_path / "w1", 1))
    assert registry.find("one").manifest.evaluation == {}  # these weights were never looked at
    registry.pin("one", True)
    registry.quarantine("one", "x")
    registry.record_check("one", done.path.name, {"perplexity": 2.5})
    assert registry.find("one").pinned
    assert registry.find("one").manifest.evaluation == {"perplexity": 2.5}
    registry.pin("one", False)
    assert not registry.find("one").pinned
    assert registry.find("one").status == "quarantined"


def test_removing_versions_and_adapters(tmp_path: Path) -> None:
    registry = make(tmp_path)
    first = registry.install("one", write_adapter(tmp_path / "w1", 1))
    second = registry.install("one", write_adapter(tmp_path / "w2", 2))
    assert registry.remove("one", second.path.name) == [second.path.name]
    assert (registry.find("one").status, registry.find("one").versions) == ("missing", (first.path.name,))
    assert registry.remove("one") == [first.path.name]
    assert not (tmp_path / "home" / "adapters" / "one").exists()
    assert registry.remove("one") == []


def test_a_damaged_folder_stops_its_own_adapter_only(tmp_path: Path) -> None:
    registry = make(tmp_path, ("one", ["emc"], ""), ("two", ["dsp"], ""))
    done = registry.install("one", write_adapter(tmp_path / "w"))
    registry.install("two", write_adapter(tmp_path / "w"))
    (done.path.parent / "state.toml").write_text("= broken")
    records = {item.name: item for item in registry.records()}
    assert (records["one"].status, records["two"].status) == ("missing", "active")
    assert "state.toml" in records["one"].reason
    (done.path.parent / "state.toml").unlink()
    (done.path.parent / "CURRENT").write_text("../../etc\n")
    assert registry.find("one").path is None


def test_adapters_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "shipped", "one", ["emc"])
    monkeypatch.setattr("mlx_router.resources.adapters_dir", lambda: tmp_path / "shipped")
    registry = Registry(tmp_path / "home")
    registry.add_manifest(Manifest(name="mine", title="Mine", domains=("dsp",), specialist="code"))
    registry.install("mine", write_peft(tmp_path / "p"))
    assert registry.names() == ["mine", "one"]
    assert registry.find("mine").status == "active"
    with pytest.raises(AdapterError, match="domain emc is claimed by one and other"):
        registry.add_manifest(Manifest(name="other", title="Other", domains=("emc",), specialist="code"))
    registry.remove("mine")
    assert registry.names() == ["one"]


def test_routes_fall_to_the_one_that_stands_in(tmp_path: Path) -> None:
    registry = make(
        tmp_path,
        ("coder", ["python"], 'stands_in = ["cpp", "rust"]\n'),
        ("cpp", ["cpp"], ""),
        ("rust", ["rust"], ""),
    )
    routes = routes_from_manifests(registry.records())
    assert (routes["cpp"].adapter, routes["cpp"].status) == ("cpp", "missing")
    registry.install("coder", write_adapter(tmp_path / "w"))
    registry.install("rust", write_adapter(tmp_path / "w"))
    routes = routes_from_manifests(registry.records())
    assert (routes["cpp"].adapter, routes["rust"].adapter) == ("coder", "rust")
    registry.quarantine("rust", "worse")
    assert routes_from_manifests(registry.records())["rust"].adapter == "coder"


def test_manifests_and_registry_never_import_mlx() -> None:
    code = "import sys, mlx_router.lora.registry; sys.exit(any(m.split('.')[0] == 'mlx' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

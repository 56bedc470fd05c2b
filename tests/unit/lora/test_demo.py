"""Preparing the embedded demo: once, by the hash of its inputs, finished after an interruption, installed with care."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_router import resources
from mlx_router.errors import AdapterError
from mlx_router.lora import demo, demo_recipes
from mlx_router.lora.files import adapter_digest
from mlx_router.lora.manifest import read_manifests
from mlx_router.lora.registry import Registry
from mlx_router.lora.rows import read_rows
from tests.adapter_files import write_adapter

NAMES = ("mascarade-kicad", "mascarade-emc", "mascarade-dsp")

CHILD = """
import json, pathlib, shutil, sys
out, made, names = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
for name in names:
    if (made / name / "fail").exists():
        sys.exit("Error: the loss became nan")
    print(json.dumps({"name": name, "done": 1, "total": 1, "note": "loss 0.1"}), flush=True)
    shutil.copytree(made / name, out / name)
"""


class Rig:
    """A demo whose children copy prepared adapters instead of training them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.made = folder / "made"
        self.texts = folder / "texts"
        self.commands: list[list[str]] = []
        self.bases = 0
        shutil.copytree(resources.specialists_dir(), folder / "specialists")
        shutil.copytree(resources.demo_dir(), self.texts)
        for number, name in enumerate(NAMES):
            self.prepare(name, number)
        monkeypatch.setattr(resources, "specialists_dir", lambda: folder / "specialists")
        monkeypatch.setattr(resources, "demo_dir", lambda: self.texts)
        monkeypatch.setattr(demo, "ADAPTERS", NAMES)
        monkeypatch.setattr(demo, "REVISED", NAMES[:1])
        monkeypatch.setattr(demo, "_command", self.command)
        monkeypatch.setattr(demo, "_make_base", self.make_base)

    def prepare(self, name: str, seed: int, *, base: str = "one", passed: bool = True) -> None:
        folder = self.made / name
        shutil.rmtree(folder, ignore_errors=True)
        write_adapter(folder, seed)
        record = {"base": {"files": {"model.safetensors": base}}, "adapter": {"digest": adapter_digest(folder)}}
        (folder / "provenance.json").write_text(json.dumps(record))
        (folder / "check.json").write_text(json.dumps({"passed": passed, "reason": "worse", "looks": []}))

    def make_base(self, draft: Path, report: Any) -> None:
        self.bases += 1
        report("base", 1, 1, "loss 0.2")
        (draft / "config.json").write_text("{}")

    def command(self, home: Path, folder: Path, kind: str, names: list[str], count: int) -> list[str]:
        self.commands.append([kind, *names])
        return [sys.executable, "-c", CHILD, str(folder / kind), str(self.made), *names]

    def ensure(self, **options: Any) -> demo.DemoPaths:
        self.told: list[tuple[str, int, int, str]] = []
        return demo.ensure_demo(self.home, lambda *event: self.told.append(event), **options)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_everything_is_made_once(rig: Rig) -> None:
    paths = rig.ensure()
    assert (paths.base / "config.json").is_file()
    assert set(paths.adapters) == set(NAMES)
    assert all(
        (path / "adapters.safetensors").is_file() for path in (*paths.adapters.values(), *paths.revised.values())
    )
    assert {task for task, *_ in rig.told} == {"base", *NAMES}
    assert sorted(name for _, *names in rig.commands for name in names) == sorted([*NAMES, NAMES[0]])
    assert (rig.home / "demo" / "base").resolve() == paths.base
    rig.commands.clear()
    assert rig.ensure() == paths
    assert (rig.commands, rig.told, rig.bases) == ([], [], 1)
    assert demo.demo_base(rig.home) == paths.base


def test_adapters_are_installed_with_their_figures(rig: Rig) -> None:
    rig.prepare(NAMES[1], 5, passed=False)
    rig.ensure()
    records = {item.name: item for item in Registry(rig.home).records()}
    assert records[NAMES[0]].status == "active"
    assert records[NAMES[0]].manifest.base == "demo"
    assert records[NAMES[0]].manifest.evaluation["passed"] is True
    assert (records[NAMES[1]].status, records[NAMES[1]].reason) == ("quarantined", "worse")
    assert records["mascarade-spice"].status == "missing"


def test_weights_of_ones_own_are_left_alone(rig: Rig, tmp_path: Path) -> None:
    mine = Registry(rig.home).install(NAMES[0], write_adapter(tmp_path / "mine", 99), base="big")
    rig.ensure()
    assert Registry(rig.home).find(NAMES[0]).sha256 == mine.digest
    assert Registry(rig.home).find(NAMES[1]).path is not None


def test_a_version_that_was_swapped_in_stays_until_the_base_changes(rig: Rig) -> None:
    rig.ensure()
    rig.prepare("other", 50)
    registry = Registry(rig.home)
    provenance = json.loads((rig.made / "other" / "provenance.json").read_text())
    swapped = registry.install(NAMES[0], rig.made / "other", base="demo", provenance=provenance)
    rig.ensure()
    assert registry.find(NAMES[0]).sha256 == swapped.digest
    rig.prepare(NAMES[0], 0, base="two")
    (rig.texts / "texts.jsonl").write_text('{"text": "changed"}\n')
    rig.ensure()
    assert registry.find(NAMES[0]).sha256 != swapped.digest


def test_changed_inputs_make_everything_anew_and_drop_the_old(rig: Rig) -> None:
    first = rig.ensure()
    (rig.texts / "texts.jsonl").write_text('{"text": "changed"}\n')
    second = rig.ensure()
    assert second.base != first.base
    assert not first.base.exists()
    assert rig.bases == 2


def test_a_failure_is_one_error_and_the_rest_is_kept(rig: Rig) -> None:
    (rig.made / NAMES[2] / "fail").touch()
    with pytest.raises(AdapterError, match=r"could not be made: the loss became nan"):
        rig.ensure()
    rig.prepare(NAMES[2], 2)
    rig.commands.clear()
    rig.ensure()
    assert rig.bases == 1
    assert NAMES[2] in {name for _, *names in rig.commands for name in names}
    assert NAMES[0] not in {name for kind, *names in rig.commands if kind == "adapters" for name in names}


def test_two_at_once_make_it_once(rig: Rig) -> None:
    threads = [threading.Thread(target=demo.ensure_demo, args=(rig.home,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.bases == 1


def test_the_command_trains_through_the_command_line(tmp_path: Path) -> None:
    command = demo._command(tmp_path, tmp_path / "k", "revised", ["mascarade-kicad"], 2)
    assert command[:3] == ["/usr/bin/env", "OPENBLAS_NUM_THREADS=1", "MKL_NUM_THREADS=1"]
    assert command[command.index("adapter") :][:3] == ["adapter", "train", "mascarade-kicad"]
    assert "--revised" in command


def test_the_demos_rows_are_there_and_honest() -> None:
    """Twelve adapters that have manifests, with rows whose held-out questions are not among the trained ones."""
    manifests = read_manifests(resources.adapters_dir())
    assert len(demo_recipes.ADAPTERS) == 12
    for name in demo_recipes.ADAPTERS:
        assert name in manifests
        train = read_rows(resources.specialists_dir() / name / "train.jsonl")
        valid = read_rows(resources.specialists_dir() / name / "valid.jsonl")
        assert len(train) >= 24
        assert len(valid) >= 6
        assert not {row.question for row in train} & {row.question for row in valid}
    general = read_rows(resources.specialists_dir() / "_general" / "valid.jsonl")
    assert all(row.expect and row.expect in row.answer for row in general)

"""`adapter train` and `adapter check` from the command line, on a base that is trained for a moment."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from mlx_router.cli import main
from mlx_router.errors import AdapterError
from mlx_router.lora.registry import Registry
from tests.tiny_base import FACTS, save_tiny_base, write_rows

NAME = "mascarade-kicad"
NEW = {"How do I route a pair?": "Press six now.", "How do I fill a zone?": "Press bee now."}
HELD_OUT = {"How can I route a pair?": "Press six now."}
QUICK = ["--iters", "16", "--batch-size", "2", "--rank", "4", "--learning-rate", "0.02", "--replay", "1", "--seed", "1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / NAME / "train.jsonl", NEW)
    write_rows(folder / NAME / "valid.jsonl", HELD_OUT)
    write_rows(folder / "_general" / "train.jsonl", FACTS)
    write_rows(folder / "_general" / "valid.jsonl", FACTS, expect=True)
    return folder


@pytest.fixture(scope="module")
def trained_home(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    result = run(home, "train", NAME, "--base", str(base), "--data", str(data), *QUICK)
    assert result.exit_code == 0, result.output
    assert f"{NAME}: sha256:" in result.stdout
    assert f"{NAME}: done" in result.stderr  # where stderr is no terminal, a line stands for the bar
    return home


def run(home: Path, *words: str) -> Result:
    config = home / "mlx-router.toml"
    config.write_text('[[specialist]]\nname = "hardware"\nport = 1\nbase = "demo"\n')
    return CliRunner().invoke(main, ["--config", str(config), "--home", str(home), "adapter", *words])


def options(base: Path, data: Path) -> list[str]:
    return ["--base", str(base), "--data", str(data)]


def test_training_installs_what_passed(trained_home: Path) -> None:
    record = Registry(trained_home).find(NAME)
    assert record.status == "active"
    assert record.path is not None
    assert record.manifest.evaluation["passed"] is True
    assert record.manifest.rank == 4
    provenance = json.loads((record.path / "provenance.json").read_text())
    assert provenance["adapter"]["digest"] == record.sha256


def test_the_last_loss_of_the_bar_is_that_of_the_summary(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["train", NAME, "--out", str(tmp_path / "out"), "--no-check", *options(base, data), *QUICK]
    result = run(tmp_path, *words)
    assert result.exit_code == 0, result.output
    bar = re.search(r"done, 16 of 16  training loss (\S+)  held-out loss ", result.stderr)
    summary = re.search(r", training loss (\S+) \(mean of its last batches\), ", result.stdout)
    assert bar is not None
    assert summary is not None
    assert bar[1] == summary[1]


def test_check_prints_a_table_and_json(trained_home: Path, base: Path, data: Path) -> None:
    result = run(trained_home, "check", NAME, *options(base, data))
    assert result.exit_code == 0, result.output
    assert "held-out perplexity" in result.stdout
    assert "passed" in result.stdout
    result = run(trained_home, "check", "--all", "--json", *options(base, data))
    assert [report["name"] for report in json.loads(result.stdout)] == [NAME]


def test_a_worse_version_is_quarantined_and_its_recovery_is_noticed(
    trained_home: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    registry = Registry(home)
    good = registry.find(NAME)
    assert good.path is not None
    worse = tmp_path / "worse"
    shutil.copytree(good.path, worse)
    random = np.random.default_rng(0)

    def noise(key: str, value: Any) -> Any:
        return random.normal(size=value.shape).astype(np.float32) * 0.3 if key.endswith("lora_b") else value

    tensors = load_file(worse / "adapters.safetensors")
    save_file({key: noise(key, value) for key, value in tensors.items()}, worse / "adapters.safetensors")
    registry.install(NAME, worse)
    assert run(home, "check", NAME, "--no-quarantine", *options(base, data)).exit_code == 1
    assert registry.find(NAME).status == "active"
    result = run(home, "check", NAME, *options(base, data))
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert len(result.stderr.strip().splitlines()) == 1
    assert registry.find(NAME).status == "quarantined"
    assert "of the base" in registry.find(NAME).reason
    assert run(home, "check", NAME, "--version", good.version or "", *options(base, data)).exit_code == 0
    registry.activate(NAME, good.version or "")
    registry.quarantine(NAME, "check: an earlier look")
    assert run(home, "check", NAME, *options(base, data)).exit_code == 0
    assert registry.find(NAME).status == "active"
    registry.quarantine(NAME, "by hand")
    assert run(home, "check", NAME, *options(base, data)).exit_code == 0
    assert registry.find(NAME).status == "quarantined"


def test_what_training_makes_worse_is_installed_but_does_not_serve(
    trained_home: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    before = Registry(home).find(NAME)
    ruin = ["--iters", "6", "--learning-rate", "0.9", "--rank", "4", "--batch-size", "2"]
    result = run(home, "train", NAME, "--json", *options(base, data), *ruin)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["active"], made["check"]["passed"]) == (False, False)
    assert Registry(home).find(NAME).sha256 == before.sha256
    assert len(Registry(home).find(NAME).versions) == 2


def test_out_writes_a_folder_and_installs_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["train", NAME, "--out", str(tmp_path / "out"), "--no-check", "--progress-lines", *options(base, data)]
    result = run(tmp_path, *words, "--iters", "2", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["name"] == NAME
    assert (events[-1]["done"], events[-1]["total"]) == (2, 2)
    assert {path.name for path in (tmp_path / "out" / NAME).iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        "provenance.json",
    }
    assert Registry(tmp_path).find(NAME).status == "missing"
    assert not list((tmp_path / "out").glob(".training-*"))


def test_out_refuses_to_replace_what_is_no_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    for changed in (mine / NAME, mine / "_general"):
        assert (changed / "train.jsonl").is_file()
    result = run(tmp_path, "train", NAME, "--out", str(mine), "--no-check", *options(base, mine), "--iters", "1")
    assert result.exit_code == 1
    assert f"{mine / NAME} is no adapter that was trained before" in result.output
    assert "train.jsonl" in result.output
    assert (mine / NAME / "train.jsonl").read_bytes() == (data / NAME / "train.jsonl").read_bytes()


def test_out_replaces_an_adapter_whole_or_not_at_all(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(seed: int) -> Result:
        words = ["train", NAME, "--out", str(tmp_path / "out"), "--no-check", *options(base, data)]
        return run(tmp_path, *words, "--iters", "1", "--batch-size", "2", "--seed", str(seed))

    weights = tmp_path / "out" / NAME / "adapters.safetensors"
    assert train(1).exit_code == 0
    first = weights.read_bytes()
    assert train(2).exit_code == 0
    second = weights.read_bytes()
    assert second != first
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.startswith(".training-"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    assert train(3).exit_code == 1
    assert weights.read_bytes() == second
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "kicad"], "did you mean 'mascarade-kicad'?"),
        (["check", "kicad"], "did you mean 'mascarade-kicad'?"),
        (["check", NAME], f"no weights are installed; install it with `mlx-router adapter add {NAME} PATH`"),
        (["train", NAME, "--data", "."], f"no rows for {NAME}: {NAME}/train.jsonl does not exist; --data DIR names"),
        (["check", "--all"], "no adapter has weights"),
        (["train", NAME, "--base", "/nowhere"], "'/nowhere' is neither a directory nor a hub name"),
        (["train", NAME, "--iters", "0"], "iters is 0"),
    ],
)
def test_errors_are_short(tmp_path: Path, words: list[str], part: str) -> None:
    result = run(tmp_path, *words)
    assert result.exit_code == 1
    assert part in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([NAME, "--iters", "0"], "iters is 0"),
        ([NAME, "--recipe", "demo"], "_general/train.jsonl does not exist; --replay 0"),
        ([NAME, "mascarade-spice", "--replay", "0"], "no rows for mascarade-spice"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], part: str
) -> None:
    made: list[Path] = []

    def make(home: Path) -> Path:
        made.append(home)
        raise AdapterError("the demo base was begun")

    monkeypatch.setattr("mlx_router.lora.demo.demo_base", make)
    mine = tmp_path / "data"
    shutil.copytree(data / NAME, mine / NAME)
    result = run(tmp_path, "train", *words, "--data", str(mine))
    assert result.exit_code == 1
    assert part in result.stderr
    assert made == []


def test_check_without_a_name_is_wrong_usage(tmp_path: Path) -> None:
    assert run(tmp_path, "check").exit_code == 2

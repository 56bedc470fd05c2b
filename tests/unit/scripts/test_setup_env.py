"""`make setup`: environments that are not whole are made anew; weights that could not be fetched hold nothing up."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.gateway_rig import ROOT


class Setup:
    """The script on a folder of its own; packages are noted in place of being fetched."""

    def __init__(self, module: ModuleType, root: Path) -> None:
        self.module = module
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.installed: list[str] = []
        self.offline = False

    def run(self, *arguments: str) -> int:
        self.installed.clear()
        sys.argv[1:] = [".venv", *arguments]
        return int(self.module.main())

    def install(self, python: Path, *what: str, must: bool = True) -> bool:
        self.installed.append(what[-1])
        return not (self.offline and what[-1] == self.module.WEIGHTS)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").touch()
    found = Setup(module, tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "_uv", lambda: "")
    monkeypatch.setattr(module, "_install", found.install)
    monkeypatch.setattr(module, "_fast_blas", lambda python: None)
    monkeypatch.setattr(sys, "argv", ["setup_env.py"])
    return found


def has_pip(python: Path) -> bool:
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def test_an_environment_without_pip_is_made_anew(setup: Setup) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", setup.venv], check=True)
    assert not has_pip(setup.python)
    assert setup.run() == 0
    assert has_pip(setup.python)
    assert len(setup.installed) == 2
    (setup.venv / "kept").touch()
    (setup.module.ROOT / "pyproject.toml").write_text("# changed")
    assert setup.run() == 0
    assert len(setup.installed) == 2
    assert (setup.venv / "kept").exists()  # a whole one is completed


def test_an_environment_of_another_python_is_made_anew(setup: Setup) -> None:
    setup.python.parent.mkdir(parents=True)
    (setup.venv / "pyvenv.cfg").touch()
    setup.python.write_text("#!/bin/sh\necho 3.9.1\n")
    setup.python.chmod(0o755)
    assert setup.run() == 0
    version = subprocess.run([setup.python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
    assert version.stdout.strip() == sys.version.strip()


def test_a_failed_creation_leaves_nothing_but_what_was_there(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "python"
    half.write_text('#!/bin/sh\nmkdir -p "$3/bin"\ntouch "$3/bin/python"\nexit 1\n')
    half.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(half))
    with pytest.raises(SystemExit):
        setup.run()
    assert not setup.venv.exists()
    setup.venv.mkdir()
    (setup.venv / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        setup.run()
    assert (setup.venv / "thesis.txt").exists()


def test_weights_that_could_not_be_fetched_are_tried_again_when_asked(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.venv.mkdir()
    monkeypatch.setattr(setup.module, "_create", lambda venv: setup.python)
    setup.offline = True
    assert setup.run() == 0
    assert setup.installed[-1] == setup.module.WEIGHTS
    assert "`make setup` tries again" in capsys.readouterr().err
    assert setup.run() == 0  # another target
    assert setup.installed == []
    assert capsys.readouterr().err == ""
    assert setup.run("--again") == 0
    assert setup.installed == [setup.module.WEIGHTS]
    assert "`make setup` tries again" in capsys.readouterr().err
    setup.offline = False
    assert setup.run("--again") == 0
    assert setup.installed == [setup.module.WEIGHTS]
    assert setup.run("--again") == 0
    assert setup.installed == []

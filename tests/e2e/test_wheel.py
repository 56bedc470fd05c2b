"""What a user gets who installs the wheel: the corpus and the manifests come along, and routing works."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; dependencies are lent by this one, the checkout is not on its path."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin" / "python"


def _run(python: Path, home: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *words], cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_corpus_and_manifests_are_inside(python: Path, tmp_path: Path) -> None:
    code = (
        "import mlx_router; from mlx_router import resources as r;"
        "print(mlx_router.__file__); print(len(list(r.corpus_dir().glob('*.jsonl'))));"
        "print(len(list(r.adapters_dir().glob('*/adapter.toml'))), r.corpus_dir())"
    )
    where, labels, manifests = _run(python, tmp_path, "-c", code).splitlines()
    assert where.startswith(str(python.parents[1]))
    assert int(labels) == 48
    assert manifests.startswith("30 ")
    assert "_data" in manifests


def test_trains_and_routes(python: Path, tmp_path: Path) -> None:
    code = (
        "import shutil; from pathlib import Path; from mlx_router import resources as r\n"
        "out = Path('corpus'); out.mkdir()\n"
        "for name in ('kicad-pcb', 'rust', 'general'):\n"
        "    lines = [x for x in (r.corpus_dir() / f'{name}.jsonl').read_text().splitlines() if f'[\"{name}\"]' in x]\n"
        "    (out / f'{name}.jsonl').write_text('\\n'.join(lines[:50]))\n"
    )
    _run(python, tmp_path, "-c", code)
    cli = ("-m", "mlx_router", "--home", str(tmp_path / "home"))
    _run(python, tmp_path, *cli, "router", "train", "--data", "corpus", "--epochs", "4")
    answer = _run(python, tmp_path, *cli, "route", "--json", "Comment router une paire différentielle USB dans KiCad ?")
    assert '"domain": "kicad-pcb"' in answer

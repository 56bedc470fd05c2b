"""The embedded default: a small base and twelve adapters, prepared once on this machine and kept by their inputs' hash.

    $HOME/demo/
      <key>/base/                  what `base = "demo"` means
      <key>/adapters/<name>/       twelve adapters, trained by `adapter train`
      <key>/revised/<name>/        a second version of one of them, to swap in
      base -> <key>/base           for whoever does not know the key

The base is trained in this process, the adapters in children, one per core where there is no GPU. Every part is
published whole: what an interruption leaves is finished by the next call.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from mlx_router import resources
from mlx_router.errors import AdapterError
from mlx_router.files import write_json
from mlx_router.lora.demo_recipes import ADAPTERS, REVISED
from mlx_router.lora.installed import CHECK, PROVENANCE
from mlx_router.lora.registry import Registry

BASE_NAME = "demo"
_SOURCES = ("demo_base.py", "demo_recipes.py", "train.py", "batches.py", "rows.py")  # whose change makes other weights


class DemoProgress(Protocol):
    """Called as things get on; from several threads, one at a time."""

    def __call__(self, task: str, done: int, total: int, note: str) -> None:
        """`task`: base, or an adapter's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPaths:
    """What was prepared."""

    base: Path
    adapters: Mapping[str, Path]  # by name
    revised: Mapping[str, Path]  # second versions


def demo_base(home: Path) -> Path:
    """The folder of the embedded base; trained first where it is not there."""
    with _locked(home) as root:
        return _ensure_base(root / _key(), _silent)


def ensure_demo(home: Path, progress: DemoProgress | None = None, *, install: bool = True) -> DemoPaths:
    """The base and its adapters, made where they are not there; `install` them where no other weights are.

    Raises AdapterError when one of them cannot be made.
    """
    report = _serial(progress or _silent)
    with _locked(home) as root:
        folder = root / _key()
        base = _ensure_base(folder, report)
        _ensure_adapters(home, folder, report)
        paths = DemoPaths(
            base=base,
            adapters={name: folder / "adapters" / name for name in ADAPTERS},
            revised={name: folder / "revised" / name for name in REVISED},
        )
        if install:
            _install(home, paths)
        for old in root.iterdir():
            if old.is_dir() and not old.is_symlink() and old.name != folder.name:
                shutil.rmtree(old, ignore_errors=True)
    return paths


def _key() -> str:
    """Twelve digits of a hash over all that decides the weights: texts, recipes, code, versions."""
    total = hashlib.sha256()
    here = Path(__file__).parent
    specialists = resources.specialists_dir()
    files = [
        *(here / name for name in _SOURCES),
        *sorted(resources.demo_dir().glob("*.jsonl")),
        *(specialists / name / f"{part}.jsonl" for name in ADAPTERS for part in ("train", "valid")),
        *(specialists / name / "revised.jsonl" for name in REVISED),
        *sorted((specialists / "_general").glob("*.jsonl")),
    ]
    for file in files:
        total.update(f"{file.parent.name}/{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    total.update("".join(version(package) for package in ("mlx", "mlx-lm", "tokenizers")).encode())
    return total.hexdigest()[:12]


def _ensure_base(folder: Path, report: DemoProgress) -> Path:
    base = folder / "base"
    if not (base / "config.json").is_file():
        with _draft(base) as draft:
            _make_base(draft, report)
    link = folder.parent / "base"
    if not link.is_symlink() or link.readlink() != Path(folder.name, "base"):
        fresh = folder.parent / f".base.{os.getpid()}"
        with suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(Path(folder.name, "base"))
        fresh.replace(link)
    return base


def _make_base(draft: Path, report: DemoProgress) -> None:
    module: Any = importlib.import_module("mlx_router.lora.demo_base")
    texts = module.BaseTexts.read(resources.demo_dir(), resources.specialists_dir())
    recipe = module.BaseRecipe()
    figures = module.train_base(
        texts, draft, recipe, lambda step, steps, loss: report("base", step, steps, f"loss {loss:.2f}")
    )
    write_json(draft / PROVENANCE, {"made_by": "mlx-router", **figures})


def _missing(folder: Path) -> list[tuple[str, str]]:
    wanted = [("adapters", name) for name in ADAPTERS] + [("revised", name) for name in REVISED]
    return [(kind, name) for kind, name in wanted if not (folder / kind / name / CHECK).is_file()]


def _ensure_adapters(home: Path, folder: Path, report: DemoProgress) -> None:
    """Train what is missing in as many children as there are cores for; the first failure is raised."""
    missing = _missing(folder)
    if not missing:
        return
    count = 1 if sys.platform == "darwin" else max(1, min(4, len(os.sched_getaffinity(0)), len(missing)))
    failures: list[str] = []
    threads = []
    for index in range(count):
        share = missing[index::count]
        commands = [
            _command(home, folder, kind, [name for each, name in share if each == kind], count)
            for kind in ("adapters", "revised")
            if any(each == kind for each, _ in share)
        ]
        threads.append(threading.Thread(target=_follow, args=(commands, report, failures), name=f"demo-{index}"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AdapterError(f"the demo's adapters could not be made: {failures[0]}")


def _command(home: Path, folder: Path, kind: str, names: Sequence[str], count: int) -> list[str]:
    """`adapter train` for some adapters; several such processes share the cores evenly."""
    command = ["/usr/bin/env", "OPENBLAS_NUM_THREADS=1", "MKL_NUM_THREADS=1"] if count > 1 else []
    command += [sys.executable, "-m", "mlx_router", "--home", str(home), "adapter", "train", *names]
    command += ["--base", str(folder / "base"), "--base-name", BASE_NAME, "--recipe", "demo"]
    command += ["--out", str(folder / kind), "--progress-lines"]
    return [*command, "--revised"] if kind == "revised" else command


def _follow(commands: Sequence[Sequence[str]], report: DemoProgress, failures: list[str]) -> None:
    """Run commands one after another and pass on the progress that they print, a JSON object a line."""
    for command in commands:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
                assert child.stdout is not None
                for line in child.stdout:
                    with suppress(ValueError):
                        event = json.loads(line)
                        report(event["name"], event["done"], event["total"], event["note"])
            if child.returncode:
                errors.seek(0)
                lines = errors.read().strip().splitlines() or [f"exit status {child.returncode}"]
                failures.append(lines[-1].removeprefix("Error: "))
                return


def _install(home: Path, paths: DemoPaths) -> None:
    """Install what is not installed, and what takes the place of an earlier demo's."""
    registry = Registry(home)
    for name, path in paths.adapters.items():
        record = registry.find(name)
        if record.path is not None:
            known = _digest(path)
            if record.sha256 == known or record.manifest.base != BASE_NAME or _from(record.path) == _from(path):
                continue
        provenance = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
        done = registry.install(name, path, provenance=provenance, base=BASE_NAME, verify=False)
        figures = json.loads((path / CHECK).read_text(encoding="utf-8"))
        registry.record_check(name, done.path.name, figures)
        if not figures.get("passed", True):
            registry.quarantine(name, str(figures.get("reason", "it failed its check")), done.path.name)


def _digest(path: Path) -> str:
    provenance = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
    return str(provenance["adapter"]["digest"])


def _from(path: Path) -> str:
    """The hash of the base that an adapter was trained on."""
    try:
        provenance = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
        return str(provenance["base"]["files"]["model.safetensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder that takes the name `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _locked(home: Path) -> Iterator[Path]:
    """The demo's folder, for one process at a time: the second one finds everything made."""
    root = home / "demo"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield root
    except OSError as error:
        raise AdapterError(f"the demo cannot be prepared in {root}: {error.strerror or error}") from error


def _silent(task: str, done: int, total: int, note: str) -> None:
    return None


def _serial(report: DemoProgress) -> DemoProgress:
    lock = threading.Lock()

    def call(task: str, done: int, total: int, note: str) -> None:
        with lock:
            report(task, done, total, note)

    return call

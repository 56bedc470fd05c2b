"""What `adapter train` and `adapter check` do between their options and the library."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_router.config import Config
from mlx_router.errors import AdapterError
from mlx_router.files import write_json
from mlx_router.lora.manifest import ACTIVE, QUARANTINED
from mlx_router.lora.registry import Registry

if TYPE_CHECKING:
    from mlx_router.lora.check import Checker, Report
    from mlx_router.lora.train import Progress, Trained, TrainFiles, TrainRecipe

BY_CHECK = "check: "  # begins the reason of a quarantine that a later check may end
OUTPUT = frozenset({"adapters.safetensors", "adapter_config.json", "provenance.json", "check.json"})
KEEP_BYTES = 256 * 2**20  # a base up to this size stays loaded between two checks

Draw = Callable[[str, int, int, str], None]


@dataclass(slots=True)
class Bench:
    """A base, and the rows that adapters are trained and checked on."""

    config: Config
    base_option: str | None
    data: Path  # holds <adapter>/{train,valid}.jsonl and _general
    base_name: str = ""  # what records call the base
    _checkers: dict[Path, Checker] = field(default_factory=dict)

    def base(self, name: str, specialist: str) -> tuple[Path, str]:
        """Folder and name of the base for an adapter."""
        from mlx_router.cli.specialists import base_of
        from mlx_router.specialist.loading import find_base

        chosen = self.base_option or base_of(self.config, name, specialist)
        return find_base(chosen, self.config.home), self.base_name or chosen

    def files(self, name: str, recipe: TrainRecipe, *, revised: bool) -> TrainFiles:
        """The rows of an adapter; `valid` where there are any. Raises AdapterError without those that it needs."""
        from mlx_router.lora.train import TrainFiles

        folder = self.data / name
        train = folder / "train.jsonl"
        if not train.exists():
            raise AdapterError(f"no rows for {name}: {train} does not exist; --data DIR names another folder")
        general = self.data / "_general" / "train.jsonl"
        if recipe.replay and not general.is_file():
            raise AdapterError(
                f"replay is {recipe.replay}, and there are no general rows: {general} does not exist;"
                " --replay 0 does without them"
            )
        return TrainFiles(
            train=train,
            valid=_there(folder / "valid.jsonl"),
            revised=folder / "revised.jsonl" if revised else None,
            general=_there(general),
        )

    def check(self, base: Path, path: Path, name: str) -> Report:
        """Every look at the adapter in `path`."""
        from mlx_router.lora.check import Checker
        from mlx_router.lora.rows import read_rows

        general = _there(self.data / "_general" / "valid.jsonl")
        valid = _there(self.data / name / "valid.jsonl")
        checker = self._checkers.get(base)
        if checker is None:
            checker = Checker(base, general=read_rows(general) if general else [])
            if sum(file.stat().st_size for file in base.glob("*.safetensors")) <= KEEP_BYTES:
                self._checkers[base] = checker
        return checker.check(path, read_rows(valid) if valid else [], name=name)


def check_target(target: Path) -> None:
    """Raise AdapterError for a folder that a trained adapter must not replace: it holds something else."""
    if target.is_symlink() or target.is_file():
        raise AdapterError(f"{target} is no folder; give another --out")
    foreign = sorted({path.name for path in target.iterdir()} - OUTPUT) if target.is_dir() else []
    if foreign:
        raise AdapterError(
            f"{target} is no adapter that was trained before, and is not replaced"
            f" (it has {', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}); give another --out"
        )


def train_one(
    bench: Bench,
    registry: Registry,
    name: str,
    recipe: TrainRecipe,
    files: TrainFiles,
    draw: Draw,
    *,
    out: Path | None,
    check: bool,
) -> dict[str, Any]:
    """Train an adapter, check it, and install it, or write it to `out`/<name>; a failed check quarantines it."""
    from mlx_router.lora.train import Progress, train_adapter

    manifest = registry.manifest(name)
    base, base_name = bench.base(name, manifest.specialist)
    parent = out or registry.root
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".training-", dir=parent))
    last = Progress(iteration=0, iterations=recipe.iters)

    def tell(progress: Progress) -> None:
        nonlocal last
        last = progress
        if progress.iteration < progress.iterations:  # the last iteration is told with its loss, which comes after it
            draw(name, progress.iteration, progress.iterations, _note(progress))

    try:
        trained = train_adapter(
            base,
            files,
            draft,
            recipe,
            name=name,
            base_name=base_name,
            on_progress=tell,
        )
        draw(name, last.iteration, last.iterations, _note(last))
        report = bench.check(base, draft, name) if check else None
        result = _result(name, trained, report)
        if out is not None:
            result["path"] = str(_publish(draft, out / name, trained, report))
        else:
            passed = report is None or report.passed
            done = registry.install(
                name, draft, activate=passed, verify=False, provenance=trained.provenance, base=base_name
            )
            result["path"], result["active"] = str(done.path), passed
            if report is not None:
                record(registry, name, done.path.name, report)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return result


def record(registry: Registry, name: str, version: str, report: Report) -> str:
    """Keep a report beside its version, quarantine the version or end an earlier check's quarantine: the status."""
    registry.record_check(name, version, report.to_json())
    reason = registry.quarantined(name).get(version, "")
    if not report.passed:
        registry.quarantine(name, BY_CHECK + report.reason, version)
        return QUARANTINED
    if reason.startswith(BY_CHECK):
        registry.release(name, version)
        return ACTIVE
    return QUARANTINED if reason else ACTIVE


def make_recipe(which: str, options: Mapping[str, Any]) -> TrainRecipe:
    """The default recipe or the demo's, with what was given on the command line."""
    from mlx_router.lora.demo_recipes import ADAPTER_RECIPE
    from mlx_router.lora.train import TrainRecipe

    given = {key: value for key, value in options.items() if value is not None and value != ()}
    start = dict(ADAPTER_RECIPE) if which == "demo" else {}
    return TrainRecipe(**{**start, **given})


def line_writer() -> Draw:
    """Progress as one JSON object a line, for a program that started us."""

    def draw(name: str, done: int, total: int, note: str) -> None:
        click.echo(json.dumps({"name": name, "done": done, "total": total, "note": note}))

    return draw


def _publish(draft: Path, target: Path, trained: Trained, report: Report | None) -> Path:
    write_json(draft / "provenance.json", trained.provenance)
    if report is not None:
        write_json(draft / "check.json", report.to_json())
    draft.chmod(0o755)
    if not target.exists():
        draft.rename(target)
        return target
    check_target(target)
    aside = Path(tempfile.mkdtemp(prefix=f".replaced-{target.name}-", dir=target.parent))
    target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return target


def _result(name: str, trained: Trained, report: Report | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "adapter": name,
        "digest": trained.digest,
        "rows": trained.rows,
        "train_loss": round(trained.train_loss, 4),
        "seconds": trained.seconds,
    }
    if report is not None:
        found["check"] = report.to_json()
    return found


def _note(progress: Progress) -> str:
    parts = []
    if progress.train_loss is not None:
        parts.append(f"training loss {progress.train_loss:.3f}")
    if progress.valid_loss is not None:
        parts.append(f"held-out loss {progress.valid_loss:.3f}")
    return "  ".join(parts)


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def chosen_names(registry: Registry, names: tuple[str, ...], every: bool) -> list[str]:
    """The adapters named, or every one that has weights."""
    if names:
        return [registry.find(name).name for name in dict.fromkeys(names)]
    if not every:
        raise click.UsageError("name an adapter, or say --all")
    found = [item.name for item in registry.records() if item.path is not None]
    if not found:
        raise AdapterError(f"no adapter has weights in {registry.root}; install some with `mlx-router adapter add`")
    return found

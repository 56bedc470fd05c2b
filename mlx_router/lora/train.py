"""`adapter train`: mlx-lm's LoRA training on chat rows, with provenance; the same input gives the same bytes.

mlx-lm's `train` is used as it is, but for two names of its module: its terminal display is replaced by a callback,
and its call that raises the wired memory limit by nothing, because that limit has crashed macOS under this load.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np

from mlx_router import __version__
from mlx_router.compute import BLAS, can_compile, mx
from mlx_router.errors import AdapterError
from mlx_router.files import sha256_file
from mlx_router.lora.batches import answer_loss, iterate_batches
from mlx_router.lora.files import CONFIG_FILE, MLX_FILE, adapter_digest
from mlx_router.lora.rows import ChatRow, encode_rows, read_rows, rows_digest, varied

T = TypeVar("T")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
CPU_CACHE_BYTES = 2**30  # of freed buffers kept between iterations: asking the system for pages anew takes longer
DENSE = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """Everything that decides what an adapter becomes, base and rows apart."""

    rank: int = 16
    scale: float = 2.0
    dropout: float = 0.0
    keys: tuple[str, ...] = ATTENTION  # module names within a layer
    num_layers: int = -1  # the last ones; -1: all
    iters: int = 300
    batch_size: int = 4  # rows
    learning_rate: float = 2e-4
    warmup: int = 10  # iterations; the rate then falls to a tenth along a cosine
    max_tokens: int = 2048  # of a row; longer ones are cut
    eval_every: int = 100  # iterations between looks at the held-out rows; 0: never
    replay: float = 0.0  # general rows mixed in, as a share of the adapter's own
    variants: int = 0  # further copies of each row, its question as others would type it: for small sets
    grad_checkpoint: bool = False  # slower, in less memory
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, less than {least}"
            for name, least in (
                ("rank", 1),
                ("iters", 1),
                ("batch_size", 1),
                ("max_tokens", 8),
                ("warmup", 0),
                ("variants", 0),
            )
            if getattr(self, name) < least
        ]
        if not (math.isfinite(self.scale) and self.scale > 0):
            problems.append(f"scale is {self.scale}, not a positive number")
        if not 0.0 < self.learning_rate < 1.0:
            problems.append(f"learning_rate is {self.learning_rate}, not between 0 and 1")
        if not 0.0 <= self.replay <= 10.0:
            problems.append(f"replay is {self.replay}, not between 0 and 10")
        if problems:
            raise AdapterError.from_problems("the recipe cannot be used", problems)

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json, as mlx-lm writes it."""
        parameters = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, "keys": list(self.keys)}
        return {"fine_tune_type": "lora", "num_layers": self.num_layers, "lora_parameters": parameters}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFiles:
    """Where rows come from."""

    train: Path
    valid: Path | None = None
    revised: Path | None = None  # rows that take the place of those with the same question
    general: Path | None = None  # rows of `replay`

    @property
    def listed(self) -> dict[str, Path]:
        """Those that are given."""
        names = ("train", "valid", "revised", "general")
        return {name: path for name in names if (path := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training run is."""

    iteration: int
    iterations: int
    train_loss: float | None = None  # mean since the last report
    valid_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An adapter that was trained."""

    path: Path
    digest: str
    rows: int
    train_loss: float
    seconds: float
    provenance: dict[str, Any]


def train_adapter(
    base: Path,
    files: TrainFiles,
    out: Path,
    recipe: TrainRecipe,
    *,
    name: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    base_name: str = "",
) -> Trained:
    """Train on `files.train` and write an adapter directory in mlx-lm's format with provenance.json in it.

    Raises AdapterError for rows or recipes that do not fit. `base_name`: what the base is called in the records.
    """
    began = time.monotonic()
    rows = _rows(files, recipe)
    mlx_lm: Any = importlib.import_module("mlx_lm")
    tuner: Any = importlib.import_module("mlx_lm.tuner.utils")
    optimizers: Any = importlib.import_module("mlx.optimizers")
    utils: Any = importlib.import_module("mlx.utils")
    trainer: Any = importlib.import_module("mlx_lm.tuner.trainer")
    model, tokenizer = mlx_lm.load(str(base))
    data = [(row.tokens, row.offset) for row in encode_rows(rows, tokenizer, recipe.max_tokens)]
    held_out = None
    if files.valid is not None and recipe.eval_every:
        held_out = [
            (row.tokens, row.offset) for row in encode_rows(read_rows(files.valid), tokenizer, recipe.max_tokens)
        ]
    batch_size = min(recipe.batch_size, len(data), len(held_out) if held_out else len(data))
    data = fill_batches(data, batch_size)
    mx.random.seed(recipe.seed)
    np.random.seed(recipe.seed)  # mlx-lm draws the order of batches from numpy's global generator
    model.freeze()
    try:
        tuner.linear_to_lora_layers(model, recipe.num_layers, recipe.config["lora_parameters"])
    except ValueError as error:
        raise AdapterError(f"adapter {name} cannot be trained: {error}") from error
    if not utils.tree_flatten(model.trainable_parameters()):
        raise AdapterError(f"the base has no modules named {', '.join(recipe.keys)}: nothing would be trained")
    model.train()
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).write_text(json.dumps(recipe.config, indent=2) + "\n", encoding="utf-8")
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    arguments = trainer.TrainingArgs(
        batch_size=batch_size,
        iters=recipe.iters,
        val_batches=-1,
        steps_per_report=max(1, recipe.iters // 20),
        steps_per_eval=recipe.eval_every or recipe.iters + 1,
        steps_per_save=recipe.iters + 1,
        max_seq_length=recipe.max_tokens + 1,
        adapter_file=str(out / MLX_FILE),
        grad_checkpoint=recipe.grad_checkpoint,
        clear_cache_threshold=CPU_CACHE_BYTES if on_cpu else 0,
    )
    display = _Display(recipe.iters, on_progress)
    ways = {"loss": answer_loss, "iterate_batches": iterate_batches} if on_cpu else {}
    with _as_we_need_it(trainer, display, compiled=not on_cpu):
        trainer.train(
            model=model,
            optimizer=optimizers.Adam(learning_rate=_schedule(recipe), bias_correction=True),
            train_dataset=data,
            val_dataset=held_out,
            args=arguments,
            **ways,
        )
    if not math.isfinite(display.loss):
        raise AdapterError(f"adapter {name}: the loss became {display.loss}; lower the learning rate")
    seconds = round(time.monotonic() - began, 1)
    provenance = _provenance(name, base, base_name, files, recipe, len(rows), display.loss, seconds)
    digest = adapter_digest(out)
    provenance["adapter"] = {"digest": digest}
    return Trained(
        path=out, digest=digest, rows=len(rows), train_loss=display.loss, seconds=seconds, provenance=provenance
    )


def _rows(files: TrainFiles, recipe: TrainRecipe) -> list[ChatRow]:
    rows = read_rows(files.train)
    if files.revised is not None:
        revised = {row.question: row for row in read_rows(files.revised)}
        rows = [revised.get(row.question, row) for row in rows]
    own, random = len(rows), Random(recipe.seed)
    rows += [varied(row, random) for row in list(rows) for _ in range(recipe.variants)]
    if recipe.replay:
        if files.general is None:
            raise AdapterError("replay needs general rows")
        general = read_rows(files.general)
        mixed = [general[index % len(general)] for index in range(round(own * recipe.replay))]
        rows += [varied(row, random) if recipe.variants and index % 2 else row for index, row in enumerate(mixed)]
    return rows


def fill_batches(data: list[T], batch_size: int) -> list[T]:
    """The rows, some of them twice: a whole number of batches.

    mlx-lm sorts rows by length and drops those of the last, unfilled batch, which are the longest, in every pass.
    """
    return data + data[: -len(data) % batch_size]


def _schedule(recipe: TrainRecipe) -> Callable[[mx.array], mx.array]:
    """A rise over `warmup` iterations, then a cosine down to a tenth."""
    optimizers: Any = importlib.import_module("mlx.optimizers")
    rate, warmup = recipe.learning_rate, min(recipe.warmup, recipe.iters - 1)
    fall: Callable[[mx.array], mx.array] = optimizers.cosine_decay(rate, max(1, recipe.iters - warmup), rate / 10)
    if not warmup:
        return fall
    rise = optimizers.linear_schedule(rate / warmup, rate, warmup)
    joined: Callable[[mx.array], mx.array] = optimizers.join_schedules([rise, fall], [warmup])
    return joined


class _Display:
    """Stands where mlx-lm's terminal display stands, and turns it into calls."""

    def __init__(self, iterations: int, on_progress: Callable[[Progress], None]) -> None:
        self._last = Progress(iteration=0, iterations=iterations)
        self._report = on_progress
        self.loss = math.nan

    def __call__(self, iterations: int, rank: int = 0) -> _Display:
        return self

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _set(self, **changes: Any) -> None:
        self._last = replace(self._last, **changes)
        self._report(self._last)

    def advance(self) -> None:
        """One iteration is done."""
        self._set(iteration=self._last.iteration + 1)

    def report_train(self, iteration: int, loss: float, *_: float) -> None:
        """Mean training loss since the last report."""
        self.loss = float(loss)
        self._set(train_loss=self.loss)

    def report_val(self, iteration: int, loss: float, *_: float) -> None:
        """Loss over the held-out rows."""
        self._set(valid_loss=float(loss))

    @contextmanager
    def val_task(self, total: int) -> Iterator[Callable[[], None]]:
        """A look at the held-out rows."""
        yield lambda: None


@contextmanager
def _as_we_need_it(trainer: Any, display: _Display, *, compiled: bool) -> Iterator[None]:
    """mlx-lm's trainer with our display, without the wired limit, and compiled only where that is worth the time."""
    saved = trainer.TrainUI, trainer.maybe_set_recommended_wired_limit
    trainer.TrainUI, trainer.maybe_set_recommended_wired_limit = display, lambda: None
    if not compiled:
        mx.disable_compile()  # g++ takes longer than what it saves
    try:
        yield
    finally:
        trainer.TrainUI, trainer.maybe_set_recommended_wired_limit = saved
        if not compiled and can_compile():
            mx.enable_compile()


def base_record(base: Path) -> dict[str, Any]:
    """Name and sha256 of every file that makes a base what it computes."""
    files = sorted(file for file in base.iterdir() if file.suffix in (".safetensors", ".json", ".jinja"))
    return {file.name: sha256_file(file) for file in files}


def software() -> dict[str, str]:
    """Versions of what computes."""
    found = {"mlx-router": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    found["blas"] = BLAS or "none"
    return found


def _provenance(
    name: str,
    base: Path,
    base_name: str,
    files: TrainFiles,
    recipe: TrainRecipe,
    rows: int,
    loss: float,
    seconds: float,
) -> dict[str, Any]:
    return {
        "name": name,
        "made_by": "mlx-router adapter train",
        "base": {"name": base_name or base.name, "files": base_record(base)},
        "data": {key: {"file": path.name, "sha256": rows_digest(path)} for key, path in files.listed.items()},
        "rows": rows,
        "recipe": {**asdict(recipe), "keys": list(recipe.keys)},
        "software": software(),
        "train_loss": round(loss, 4),
        "seconds": seconds,
        "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

"""Adapters beside one resident base, against stock mlx-lm, which loads one at a time.

    python -m benchmarks.adapters [--quick]

Floors first: what no implementation can go below on this machine. Then switching, flatness over base sizes, decoding
mixed batches, prefill and the cost for base-only traffic. All in one run, contenders interleaved, so that ratios are
comparable; a table, then one JSON line. Models are random: speed does not depend on the weights.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlx_router.compute import BLAS, mx, nn

# isort: split
import mlx_lm
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_adapters, load_model

from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.binding import AdapterVersion
from mlx_router.lora.load import read_adapter
from tests.tiny_models import open_model, save_adapter, save_model, save_tokenizer

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")  # what the thirty adapters target
LINEARS = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
TARGETS = {"attention": ATTENTION, "all linear layers": LINEARS}
SHAPE_600M: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_hidden_layers": 28,
}
SHAPE_90M: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16384,
    "num_hidden_layers": 12,
}


@dataclass
class Timings:
    """Durations of one contender, ms."""

    values: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        return sorted(self.values)[min(len(self.values) - 1, int(0.95 * len(self.values)))]

    def json(self) -> dict[str, float]:
        return {
            "n": len(self.values),
            "p50_ms": round(self.p50, 3),
            "p95_ms": round(self.p95, 3),
            "min_ms": round(min(self.values), 3),
        }


def interleave(
    rounds: int, contenders: dict[str, Callable[[], None]], *, before: dict[str, Callable[[], None]] | None = None
) -> dict[str, Timings]:
    """Run every contender once to warm up, then once a round, so that all meet the same noise.

    `before` a contender, something may be prepared that is not measured.
    """
    timings = {name: Timings() for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            if before is not None and name in before:
                before[name]()
            gc.collect()
            start = time.perf_counter()
            run()
            if round_number:
                timings[name].values.append((time.perf_counter() - start) * 1e3)
    return timings


def save_large_tokenizer(path: Path, size: int) -> Path:
    """A byte-pair tokenizer with as many entries as a real one: mlx-lm reads it again at every load."""
    symbols = [chr(0x4E00 + index) for index in range(390)]
    pairs = [(left, right) for left in symbols for right in symbols][: size - len(symbols)]
    vocabulary = {text: index for index, text in enumerate([*symbols, *(left + right for left, right in pairs)])}
    merges = [list(pair) for pair in pairs]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": None, "byte_fallback": False}
    parts = {"truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    document: dict[str, Any] = {"version": "1.0", **parts, "added_tokens": [], "decoder": None, "model": model}
    (path / "tokenizer.json").write_text(json.dumps(document))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return path


def switching(home: Path, rounds: int) -> tuple[dict[str, Timings], int]:
    """Another adapter on a 0.6B-shape 4-bit base: ms from its name to ready, and the adapter's bytes."""
    base = save_large_tokenizer(save_model(home / "base600m", "qwen3", bits=4, **SHAPE_600M), 151_000)
    paths = [save_adapter(home / f"s{seed}", base, rank=16, keys=LINEARS, seed=seed) for seed in (1, 2)]
    bank = AdapterBank(open_model(base), slots=9, budget_bytes=8 * 2**30)
    bank.load(read_adapter(paths[0]), name="warm")
    turns = itertools.count()
    weights = paths[0] / "adapters.safetensors"
    while time.time() - (paths[1] / "adapters.safetensors").stat().st_ctime < 3:  # younger files are never trusted
        time.sleep(0.1)

    def following() -> Path:
        return paths[next(turns) // 5 % 2]

    def floor() -> None:
        hashlib.sha256(weights.read_bytes()).digest()

    def stock() -> None:
        mlx_lm.load(str(base), adapter_path=str(following()))

    def stock_model() -> None:
        load_adapters(load_model(base)[0], str(following()))

    def swap() -> None:
        bank.load(read_adapter(following()), name="swapped")

    def swap_new() -> None:
        path = following()
        (path / "adapters.safetensors").touch()
        bank.load(read_adapter(path), name="swapped new")

    def resident() -> None:
        bank.make_cache(bank.acquire(bank.find("warm")))

    contenders = {
        "floor: read and hash the file": floor,
        "stock, as its server does": stock,
        "stock, without its tokenizer": stock_model,
        "bank, a new file": swap_new,
        "bank, a file read before": swap,
        "bank, resident": resident,
    }
    touched = {"bank, a file read before": lambda: _settle(paths)}
    return interleave(rounds, contenders, before=touched), weights.stat().st_size


def _settle(paths: list[Path]) -> None:
    """Let files that were touched be read once more and, seconds later, be trusted."""
    newest = max((path / "adapters.safetensors").stat().st_ctime for path in paths)
    time.sleep(max(0.0, newest + 2.2 - time.time()))
    for path in paths:
        read_adapter(path)


def flatness(home: Path, rounds: int) -> dict[str, dict[str, Timings]]:
    """The same switch over growing bases: the adapter has 4 layers on each."""
    results = {}
    for layers in (4, 12, 24):
        shape = {**SHAPE_600M, "num_hidden_layers": layers, "vocab_size": 32768}
        base = save_tokenizer(save_model(home / f"flat{layers}", "qwen3", bits=4, **shape))
        path = save_adapter(home / f"flat{layers}a", base, rank=16, keys=LINEARS, num_layers=4)
        bank = AdapterBank(open_model(base), slots=9)

        def stock(base: Path = base, path: Path = path) -> None:
            mlx_lm.load(str(base), adapter_path=str(path))

        def swap(bank: AdapterBank = bank, path: Path = path) -> None:
            (path / "adapters.safetensors").touch()
            bank.load(read_adapter(path), name="flat")

        results[f"{layers} layers"] = interleave(rounds, {"stock": stock, "bank swap": swap})
    return results


class Traffic:
    """Eight requests at once on a 90M float32 base, over eight adapters of rank 16 on the modules named by `keys`."""

    ROWS = 8

    def __init__(self, home: Path, keys: tuple[str, ...], *, prompt_tokens: int, new_tokens: int) -> None:
        self.new_tokens = new_tokens
        self.base = save_tokenizer(save_model(home / "base90m", "qwen3", **SHAPE_90M))
        self.paths = [
            save_adapter(home / f"t{len(keys)}-{seed}", self.base, rank=16, keys=keys, seed=seed, strength=0.01)
            for seed in range(self.ROWS)
        ]
        self.plain = open_model(self.base)
        self.bank = AdapterBank(open_model(self.base), slots=33)
        self.versions: list[AdapterVersion | None] = [self.bank.load(read_adapter(path)) for path in self.paths]
        mx.random.seed(3)
        self.prompts: Any = mx.random.randint(0, SHAPE_90M["vocab_size"], (self.ROWS, prompt_tokens)).tolist()

    def batch(self, model: nn.Module, versions: list[AdapterVersion | None] | None, new_tokens: int) -> None:
        """Prefill all prompts and decode `new_tokens` for each; None: no bank."""
        generator = BatchGenerator(model, max_tokens=new_tokens, prefill_batch_size=8)
        leases = [] if versions is None else [self.bank.acquire(item) for item in versions]
        caches = [self.bank.make_cache(lease) for lease in leases] or None
        generator.insert(self.prompts, caches=caches)
        self._finish(generator, self.ROWS)
        for lease in leases:
            lease.release()

    @staticmethod
    def _finish(generator: Any, rows: int) -> None:
        while rows:
            _, responses = generator.next()
            rows -= sum(response.finish_reason is not None for response in responses)
        generator.close()

    def contenders(self, new_tokens: int) -> dict[str, Callable[[], None]]:
        one, none = [self.versions[0]] * self.ROWS, [None] * self.ROWS
        wrapped = self.bank.wrapped
        return {
            "floor: unwrapped base": lambda: self.batch(self.plain, None, new_tokens),
            "bank, base rows only": lambda: self.batch(wrapped, list(none), new_tokens),
            "bank, 1 adapter": lambda: self.batch(wrapped, list(one), new_tokens),
            "bank, 8 adapters": lambda: self.batch(wrapped, self.versions, new_tokens),
        }

    def stock_swapping(self) -> None:
        """What mlx_lm.server does for the same 8 requests: reload for each, alone in its batch."""
        for path, prompt in zip(self.paths, self.prompts, strict=True):
            model = mlx_lm.load(str(self.base), adapter_path=str(path))[0]
            generator = BatchGenerator(model, max_tokens=self.new_tokens)
            generator.insert([prompt])
            self._finish(generator, 1)


def traffic_goals(decode: dict[str, Timings], prefill: dict[str, Timings]) -> dict[str, Any]:
    """The ratios of mixed traffic, printed."""
    unwrapped, base_only = decode["floor: unwrapped base"], decode["bank, base rows only"]
    one, eight = decode["bank, 1 adapter"], decode["bank, 8 adapters"]
    return {
        "mixed_vs_one": goal("8 adapters, tokens/s of 1 adapter", ratio(one, eight), 0.90),
        "mixed_vs_base": goal("8 adapters, tokens/s of the unwrapped base", ratio(unwrapped, eight), 0.85),
        "mixed_vs_stock": goal("8 adapters, tokens/s of stock swapping", ratio(decode["stock swapping"], eight), 5),
        "base_overhead": goal("base-only overhead", ratio(base_only, unwrapped) - 1, 0.02, at_least=False),
        "prefill_vs_base": goal(
            "prefill of 8 adapters, tokens/s of the unwrapped base",
            ratio(prefill["floor: unwrapped base"], prefill["bank, 8 adapters"]),
            0.85,
        ),
    }


def ratio(slow: Timings, fast: Timings) -> float:
    """How many times longer `slow` takes: the median of the rounds' ratios, else the ratio of the medians."""
    if len(slow.values) != len(fast.values):
        return slow.p50 / fast.p50
    return statistics.median(a / b for a, b in zip(slow.values, fast.values, strict=True))


def table(title: str, timings: dict[str, Timings]) -> None:
    print(f"\n{title}\n{'':36}{'n':>4}{'p50 ms':>11}{'p95 ms':>11}{'min ms':>11}")
    for name, item in timings.items():
        print(f"{name:36}{len(item.values):4}{item.p50:11.2f}{item.p95:11.2f}{min(item.values):11.2f}")


def goal(name: str, value: float, bound: float, *, at_least: bool = True) -> dict[str, Any]:
    met = value >= bound if at_least else value <= bound
    print(f"{name:58}{value:9.3f}   goal {'>=' if at_least else '<='} {bound:<6} {'met' if met else 'MISSED'}")
    return {"value": round(value, 4), "goal": bound, "met": met}


def info(name: str, value: float) -> dict[str, Any]:
    print(f"{name:58}{value:9.3f}")
    return {"value": round(value, 4)}


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.system()} {platform.machine()}, {platform.processor() or 'unknown cpu'}",
        "device": str(mx.default_device()),
        "blas": BLAS,
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "commit": commit.stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: a minute instead of several")
    quick = parser.parse_args().quick
    where = machine()
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        switch, adapter_bytes = switching(home, 3 if quick else 15)
        table(f"switch to another adapter of {adapter_bytes / 1e6:.0f} MB, 0.6B shape, 4 bit", switch)
        flat = flatness(home, 2 if quick else 7)
        for name, timings in flat.items():
            table(f"switch to a 4-layer adapter, base of {name}", timings)
        new_tokens = 16 if quick else 48
        decode, prefill = {}, {}
        for name, keys in TARGETS.items():
            traffic = Traffic(home, keys, prompt_tokens=32, new_tokens=new_tokens)
            decode[name] = interleave(3 if quick else 15, traffic.contenders(new_tokens))
            decode[name] |= interleave(1 if quick else 5, {"stock swapping": traffic.stock_swapping})
            table(
                f"8 requests x {new_tokens} tokens after 32-token prompts, 90M float32, adapters on {name}",
                decode[name],
            )
            traffic = Traffic(home, keys, prompt_tokens=64 if quick else 256, new_tokens=1)
            prefill[name] = interleave(2 if quick else 5, traffic.contenders(1))
            table(f"prefill of 8 x {len(traffic.prompts[0])} tokens, adapters on {name}", prefill[name])
    print()
    small, large = flat["4 layers"], flat["24 layers"]
    goals = {
        "switch_vs_stock": goal(
            "switch: stock / bank, a file read before",
            ratio(switch["stock, as its server does"], switch["bank, a file read before"]),
            10,
        ),
        "switch_new_vs_stock": goal(
            "switch: stock / bank, a new file",
            ratio(switch["stock, as its server does"], switch["bank, a new file"]),
            10,
        ),
        "switch_vs_stock_model": info(
            "switch: stock without its tokenizer / file read before",
            ratio(switch["stock, without its tokenizer"], switch["bank, a file read before"]),
        ),
        "switch_new_vs_stock_model": info(
            "switch: stock without its tokenizer / a new file",
            ratio(switch["stock, without its tokenizer"], switch["bank, a new file"]),
        ),
        "switch_growth": goal(
            f"switch, largest base / smallest base (stock grows {ratio(large['stock'], small['stock']):.1f}x)",
            ratio(large["bank swap"], small["bank swap"]),
            1.25,
            at_least=False,
        ),
    }
    for name in TARGETS:
        print(f"\nadapters on {name}")
        goals |= {f"{key}, {name}": value for key, value in traffic_goals(decode[name], prefill[name]).items()}
    report = {
        "benchmark": "adapters",
        "quick": quick,
        **where,
        "adapter_bytes": adapter_bytes,
        "switch": {name: item.json() for name, item in switch.items()},
        "flat": {size: {name: item.json() for name, item in items.items()} for size, items in flat.items()},
        "decode": {keys: {name: item.json() for name, item in items.items()} for keys, items in decode.items()},
        "prefill": {keys: {name: item.json() for name, item in items.items()} for keys, items in prefill.items()},
        "tokens_per_s": {
            keys: {name: round(Traffic.ROWS * new_tokens / item.p50 * 1e3, 1) for name, item in items.items()}
            for keys, items in decode.items()
        },
        "goals": goals,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

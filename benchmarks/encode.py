"""The encoder's speed beside its peers': `python -m benchmarks.encode [--quick] [--torch-python PATH]`.

Contenders, each in a process of its own, called in turn so that a busy machine treats them alike: our graph on ONNX
Runtime; MLX; and, where --torch-python names an interpreter that has them, ONNX Runtime on torch's exported and fused
graph, and sentence-transformers on torch. All get the same token ids: one prompt of T tokens, and real prompts of the
corpus sorted by length in batches of 32, which our ONNX runtime cuts to 512 tokens as it does in service. Wall time is
what users feel; CPU time is what a busy machine still measures fairly. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.encoder.batching import BATCH, by_length
from mlx_router.encoder.tokenizer import Tokenizer
from mlx_router.encoder.weights import EncoderFiles, find_encoder

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("encode_worker.py")
LENGTHS = (8, 16, 32, 128, 256)
TOKENS = 512  # OnnxRuntime.batch_tokens, which a host without onnxruntime cannot import
NAMES = {"onnx": "ours, ONNX Runtime", "mlx": "ours, MLX", "export": "ORT, torch export", "torch": "torch"}
MATRICES = 6 * (4 * 384 * 384 + 2 * 384 * 1536)  # weights of the blocks' matrix products
Batches = list[list[list[int]]]


@dataclass
class Samples:
    """Milliseconds of one contender at one task."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Median, 95th percentile and least wall time, median CPU time."""
        return {
            "median_ms": round(statistics.median(self.wall), 3),
            "p95_ms": round(float(np.quantile(self.wall, 0.95)), 3),
            "min_ms": round(min(self.wall), 3),
            "cpu_ms": round(statistics.median(self.cpu), 3),
            "n": len(self.wall),
        }


class Worker:
    """A contender's process."""

    def __init__(self, python: str, kind: str, model: Path, threads: int, work: Path) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            [python, str(WORKER), kind, str(model), str(threads), str(work)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if kind in ("export", "torch") else None,
            text=True,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def ask(self, batches: Batches, repeat: int, vectors: bool = False) -> dict[str, Any]:
        """Time `repeat` passes over the batches."""
        if self.process.stdin is None:
            raise RuntimeError("the worker has no input")
        self.process.stdin.write(json.dumps({"batches": batches, "repeat": repeat, "vectors": vectors}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=30)

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line:
            raise SystemExit(f"contender {self.kind} ended with status {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def corpus_rows(files: EncoderFiles, count: int) -> list[list[int]]:
    """Token ids of `count` prompts drawn from the whole corpus."""
    texts = [
        json.loads(line)["text"]
        for path in sorted((ROOT / "data" / "router").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [row.tolist() for row in Tokenizer(files.tokenizer).encode(random.Random(0).sample(texts, count))]


def prompt_of(length: int, rows: list[list[int]]) -> list[int]:
    """A prompt of exactly `length` tokens made of real ones."""
    words = [token for row in rows for token in row[1:-1]]
    return [rows[0][0], *words[: length - 2], rows[0][-1]]


def floors(threads: int) -> dict[str, float]:
    """What this machine can do now: bytes read a second, and float32 operations a second in a matrix product."""
    blocks = [np.ones(16 << 20, dtype=np.float32) for _ in range(threads)]
    square = np.ones((1024, 1024), dtype=np.float32)
    read, multiply = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(6):
            started = time.perf_counter()
            list(pool.map(np.sum, blocks))
            read.append(sum(block.nbytes for block in blocks) / (time.perf_counter() - started))
            started = time.perf_counter()
            square @ square
            multiply.append(2 * 1024**3 / (time.perf_counter() - started))
    return {"read_gb_s": round(max(read) / 1e9, 1), "gflop_s": round(max(multiply) / 1e9, 1)}


def floor_ms(length: int, machine: dict[str, float]) -> float:
    """Least time of one prompt: every weight read once, every multiplication done once, whichever is longer."""
    read = MATRICES * 4 / (machine["read_gb_s"] * 1e9)
    flop = 2 * MATRICES * length + 6 * 4 * 384 * length**2
    return max(read, flop / (machine["gflop_s"] * 1e9)) * 1e3


def measure(
    workers: list[Worker], tasks: dict[str, Batches], cut: dict[str, Batches], rounds: int, repeat: int
) -> dict[str, dict[str, Any]]:
    """Every contender at every task, in turn; who begins changes with the round."""
    samples = {worker.kind: {task: Samples() for task in tasks} for worker in workers}
    for turn in range(rounds):
        for task, common in tasks.items():
            shift = turn % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                batches = cut.get(worker.kind, common) if task == "batch32" else common
                reply = worker.ask(batches, repeat if len(batches) == 1 else 1)
                samples[worker.kind][task].wall += reply["wall_ms"]
                samples[worker.kind][task].cpu += reply["cpu_ms"]
    return {kind: {task: found.figures() for task, found in mine.items()} for kind, mine in samples.items()}


def agreement(workers: list[Worker], batches: Batches) -> dict[str, float]:
    """Largest difference of any component from our ONNX runtime's."""
    vectors = {worker.kind: np.array(worker.ask(batches, 1, vectors=True)["vectors"]) for worker in workers}
    first = vectors[workers[0].kind]
    return {kind: float(np.abs(found - first).max()) for kind, found in vectors.items()}


def ratios(results: dict[str, dict[str, Any]], ours: str) -> dict[str, dict[str, dict[str, float]]]:
    """How many times as long a peer takes as we do, by task: median, least and CPU time; above 1 we are faster."""
    return {
        kind: {
            task: {
                key: round(figures[f"{key}_ms"] / results[ours][task][f"{key}_ms"], 3)
                for key in ("median", "min", "cpu")
            }
            for task, figures in mine.items()
        }
        for kind, mine in results.items()
        if kind != ours
    }


def print_table(results: dict[str, dict[str, Any]], prompts: int, machine: dict[str, float]) -> None:
    """One line a contender: median/p95 wall ms, then CPU ms; prompts a second last."""
    print(f"\n{'one prompt, ms':<20}" + "".join(f"{f'T={length}':>24}" for length in LENGTHS) + f"{'batch 32':>24}")
    print(f"{'floor':<20}" + "".join(f"{floor_ms(length, machine):>24.2f}" for length in LENGTHS))
    for kind, mine in results.items():
        cells = []
        for length in LENGTHS:
            one = mine[f"T{length}"]
            cells.append(f"{one['median_ms']:.1f}/{one['p95_ms']:.1f} cpu {one['cpu_ms']:.1f}")
        batch = mine["batch32"]
        cells.append(f"{prompts / batch['median_ms'] * 1e3:.0f}/s cpu {batch['cpu_ms'] / prompts:.1f}")
        print(f"{NAMES[kind]:<20}" + "".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    """Run every contender that is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few passes, to see that it works")
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter with sentence-transformers")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="folder of MiniLM's files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()

    files = find_encoder(given.encoder)
    rounds, repeat, prompts = (3, 3, 96) if given.quick else (10, 10, 704)
    kinds = {
        kind: sys.executable for kind in ("onnx", "mlx") if kind == "mlx" or importlib.util.find_spec("onnxruntime")
    }
    rows = corpus_rows(files, prompts)
    numbers = [np.array(row, dtype=np.int32) for row in rows]
    tasks: dict[str, Batches] = {f"T{length}": [[prompt_of(length, rows)]] for length in LENGTHS}
    tasks["batch32"] = [[rows[i] for i in index] for index in by_length(numbers, BATCH)]
    cut = {"onnx": [[rows[i] for i in index] for index in by_length(numbers, BATCH, TOKENS)]}
    machine = floors(given.threads)
    load = [round(os.getloadavg()[0], 1)]
    print(f"{platform.machine()}, {given.threads} threads, load {load[0]}: {machine}")
    print(f"blocks: {MATRICES * 4 / 1e6:.1f} MB of weights, {2 * MATRICES / 1e6:.1f} MFLOP a token and 9.2 kFLOP x T")

    with tempfile.TemporaryDirectory() as folder:
        work, model = Path(folder), files.model.parent
        python = given.torch_python or (sys.executable if importlib.util.find_spec("sentence_transformers") else None)
        if python:
            kinds["torch"] = python
            made = subprocess.run(
                [python, str(WORKER), "make-export", str(model), "0", folder], capture_output=True, text=True
            )
            if made.returncode == 0:
                kinds["export"] = python
            else:
                print(f"no export: {made.stderr.strip().splitlines()[-1:]}")
        workers = [Worker(python, kind, model, given.threads, work) for kind, python in kinds.items()]
        try:
            apart = agreement(workers, tasks["batch32"][:2] + tasks["batch32"][-1:])
            results = measure(workers, tasks, cut, rounds, repeat)
        finally:
            for worker in workers:
                worker.close()
    load.append(round(os.getloadavg()[0], 1))
    print_table(results, prompts, machine)
    ours = workers[0].kind
    print(
        json.dumps(
            {
                "benchmark": "encode",
                "machine": {**machine, "arch": platform.machine(), "threads": given.threads, "load": load},
                "commit": _commit(),
                "versions": {name: found for worker in workers for name, found in worker.versions.items()},
                "prompts": prompts,
                "floor_ms": {f"T{length}": round(floor_ms(length, machine), 3) for length in LENGTHS},
                "results": results,
                "prompts_per_s": {
                    kind: round(prompts / mine["batch32"]["median_ms"] * 1e3, 1) for kind, mine in results.items()
                },
                "times_ours": ratios(results, ours),
                "max_difference": apart,
            }
        )
    )


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


if __name__ == "__main__":
    main()

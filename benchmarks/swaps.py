"""Adapter swaps under load: `python benchmarks/swaps.py [--swaps 500]`.

A real specialist serves a tiny base (so that memory shows leaks, not weights). Clients stream and ask without pause,
over several adapters; meanwhile one of them is replaced again and again through the admin endpoint. Every answer must
come, and come from the version that its header names. Memory is the server's resident set, after a warm-up and at the
end, each the median of several looks. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tiny bases of the tests

from tests import tiny_chat  # noqa: E402
from tests.specialist_process import SpecialistProcess, specialist_process  # noqa: E402

VERSIONS = 8
SWAPPED, STEADY = "swapped", ("steady-a", "steady-b")


@dataclass
class Run:
    """What was seen."""

    requests: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    swap_ms: list[float] = field(default_factory=list)
    bank_ms: list[float] = field(default_factory=list)
    stopped: bool = False


async def client(url: str, session: aiohttp.ClientSession, run: Run, number: int, letters: dict[str, str]) -> None:
    """Ask until the run is over; check that every answer is of one version, the one in its header."""
    turn = 0
    while not run.stopped:
        turn += 1
        model = (SWAPPED, SWAPPED, *STEADY, "base")[(turn + number) % 5]
        body = {
            "model": model,
            "stream": turn % 2 == 0,
            "max_tokens": 4 + (turn + number) % 13,
            "messages": [{"role": "user", "content": "x" * (1 + (turn * 7 + number) % 120)}],
        }
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                raw = await response.text()
                if response.status != 200:
                    run.failures[f"status {response.status}"] += 1
                    continue
                text = streamed(raw) if body["stream"] else json.loads(raw)["choices"][0]["message"]["content"]
                expected = letters[response.headers["x-adapter-digest"]]
        except (aiohttp.ClientError, ValueError, KeyError, TimeoutError) as error:
            run.failures[type(error).__name__] += 1
            continue
        run.requests += 1
        run.tokens += len(text)
        if text != expected * int(str(body["max_tokens"])):
            run.failures["wrong version"] += 1


def streamed(raw: str) -> str:
    """The text of a whole stream; ValueError for one that did not end well."""
    events = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        raise ValueError("the stream did not end")
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def swap(
    url: str, session: aiohttp.ClientSession, run: Run, paths: list[Path], count: int, load: Run, pace: int
) -> None:
    """Replace the adapter `count` times, each time after `pace` more answers of `load`."""
    for number in range(count):
        wanted = load.requests + pace
        while load.requests < wanted and not load.failures:  # noqa: ASYNC110  a few looks a swap
            await asyncio.sleep(0.002)
        body = {"lora_name": SWAPPED, "lora_path": str(paths[number % len(paths)]), "load_inplace": True}
        started = time.perf_counter()
        async with session.post(f"{url}/v1/load_lora_adapter", json=body) as response:
            answer = await response.json()
            if response.status != 200:
                run.failures[f"swap {response.status}"] += 1
                continue
        run.swap_ms.append((time.perf_counter() - started) * 1000)
        run.bank_ms.append(answer["ms"]["bank"])


async def memory(process: psutil.Process, looks: int = 9) -> int:
    """Resident bytes, the median of several looks over a second."""
    seen = []
    for _ in range(looks):
        seen.append(process.memory_info().rss)
        await asyncio.sleep(0.1)
    return int(statistics.median(seen))


async def measure(
    server: SpecialistProcess, root: Path, swaps: int, warm_up: int, clients: int, pace: int
) -> dict[str, Any]:
    """Warm up, then swap under load."""
    paths = [root / f"v{number}" for number in range(VERSIONS)]
    letters = {"base": "z"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        for name, path in [(SWAPPED, paths[0]), *zip(STEADY, (root / "v8", root / "v9"), strict=True)]:
            server.load(name, path)
        for number, path in enumerate([*paths, root / "v8", root / "v9"]):
            digest = server.load("probe", path, replace=True)["digest"]
            letters[digest] = chr(ord("A") + number)
        server.post("/v1/unload_lora_adapter", {"lora_name": "probe"})
        run = Run()
        tasks = [asyncio.create_task(client(server.url, session, run, index, letters)) for index in range(clients)]
        process = psutil.Process(server.process.pid)
        await swap(server.url, session, run, paths, warm_up, run, pace)
        before = await memory(process)
        counted = Run(failures=run.failures)
        requests, tokens, started = run.requests, run.tokens, time.perf_counter()
        await swap(server.url, session, counted, paths, swaps, run, pace)
        seconds = time.perf_counter() - started
        requests, tokens = run.requests - requests, run.tokens - tokens
        after = await memory(process)
        run.stopped = True
        await asyncio.gather(*tasks)
    return {
        "benchmark": "swaps",
        "swaps": len(counted.swap_ms),
        "clients": clients,
        "requests": requests,
        "tokens": tokens,
        "failures": dict(run.failures),
        "failed": sum(run.failures.values()),
        "seconds": round(seconds, 1),
        "swap_ms_p50": round(statistics.median(counted.swap_ms), 2),
        "swap_ms_p95": round(statistics.quantiles(counted.swap_ms, n=20)[-1], 2),
        "bank_ms_p50": round(statistics.median(counted.bank_ms), 2),
        "memory_start_mb": round(before / 1e6, 1),
        "memory_end_mb": round(after / 1e6, 1),
        "memory_growth": round(after / before - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=50, help="swaps before memory is looked at first")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pace", type=int, default=4, help="answers between two swaps")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    print(f"{platform.machine()} {os.cpu_count()} cpus, commit {commit.stdout.strip()}, {options}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = tiny_chat.save_revealing(root / "base")
        for number in range(VERSIONS + len(STEADY)):
            tiny_chat.save_version(root / f"v{number}", number)
        top = f'adapter_roots = ["{root}"]'
        with specialist_process(root / "home", base, top=top, slots=8, prompt_cache_bytes=2**22, max_batch=8) as server:
            result = asyncio.run(measure(server, root, options.swaps, options.warm_up, options.clients, options.pace))
    for name, value in result.items():
        print(f"{name:>18}  {value}")
    print(json.dumps(result))
    if result["failed"] or result["memory_growth"] > 0.05:
        sys.exit(1)


if __name__ == "__main__":
    main()

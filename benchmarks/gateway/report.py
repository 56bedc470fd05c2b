"""Rows to read, and the figures beside their goals."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gateway.processes import ROOT

GOALS = {"overhead_p50_ms": 0.6, "overhead_p99_ms": 2.0, "requests_per_s": 3000.0, "streams_per_s": 1500.0}


def table(results: dict[str, Any]) -> None:
    """Print one row for each measurement."""
    for who in ("direct", "gateway", "litellm"):
        for what, row in results.get(who, {}).items():
            print(f"{who:8} {what:8} {row}")
    for words, row in results.get("routed", {}).items():
        print(f"routed   {words:>4} words  one {row['one']}  sixteen {row['sixteen']}")
    if "load" in results:
        print(f"load     {results['load']}")


def figures(results: dict[str, Any]) -> dict[str, float]:
    """What the gateway adds, and what it carries."""
    direct_p50 = statistics.mean(results[who]["one"]["p50_ms"] for who in ("direct", "direct_again"))
    through = results["gateway"]
    found = {
        "overhead_p50_ms": round(through["one"]["p50_ms"] - direct_p50, 4),
        "overhead_p99_ms": round(through["one"]["p99_ms"] - direct_p50, 4),
        "requests_per_s": through["sixteen"]["per_s"],
        "streams_per_s": through["streams"]["per_s"],
    }
    if "litellm" in results:
        found["times_litellm"] = round(through["sixteen"]["per_s"] / results["litellm"]["sixteen"]["per_s"], 1)
    return found


def summary(results: dict[str, Any], seconds: float, versions: dict[str, str]) -> dict[str, Any]:
    """The line that is kept: machine, versions, figures, goals and every measurement."""
    reached = figures(results)
    met = {
        name: reached[name] <= goal if name.endswith("_ms") else reached[name] >= goal for name, goal in GOALS.items()
    }
    return {
        "benchmark": "gateway",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
        "versions": versions,
        "seconds": seconds,
        "load_average": round(os.getloadavg()[0], 2),
        "figures": reached,
        "goals": GOALS,
        "met": met,
        "results": results,
    }


def package_versions() -> dict[str, str]:
    """Of what the gateway stands on."""
    found = {"python": platform.python_version()}
    for name in ("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"

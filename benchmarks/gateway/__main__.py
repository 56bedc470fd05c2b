"""What the gateway costs: latency and throughput straight to a do-nothing upstream, through the gateway, and
through LiteLLM's proxy where it is installed, in one run. Ends in one line of JSON.

    python -m benchmarks.gateway [--seconds 5] [--routed] [--load 60] [--litellm PATH]

Upstream, load generator and gateway share the machine's cores, as in the published figures of the peers. `--routed`
also measures prompts that the router has not seen, by length; it needs a trained version. `--load` holds 200
connections of mixed traffic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway import litellm, report
from benchmarks.gateway.measure import measure, measure_load, measure_routed
from benchmarks.gateway.processes import free_port, process


def main() -> None:
    """Run the whole comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--routed", action="store_true", help="also prompts that the router has not seen")
    parser.add_argument("--load", type=float, default=0.0, help="seconds of 200 connections; 0: none")
    parser.add_argument("--home", default=None, help="where the router versions are, for --routed")
    parser.add_argument("--litellm", default=shutil.which("litellm"), help="LiteLLM's command, if not on PATH")
    options = parser.parse_args()
    results = compare(options)
    report.table(results)
    versions = report.package_versions()
    if options.litellm:
        versions["litellm"] = litellm.version(options.litellm)
    print(json.dumps(report.summary(results, options.seconds, versions), ensure_ascii=False))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, by who answered."""
    upstream, port, other = free_port(), free_port(), free_port()
    ours = [sys.executable, "-m"]
    subject = [*ours, "benchmarks.gateway.subject"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "mlx-router.toml"
        config.write_text(
            f'[gateway]\nport = {port}\n[[specialist]]\nname = "nothing"\nport = {upstream}\n', encoding="utf-8"
        )
        with process([*ours, "benchmarks.gateway.upstream", str(upstream)], f"http://127.0.0.1:{upstream}/ready"):
            ready = f"http://127.0.0.1:{port}/ready"
            with process([*subject, str(config), str(folder / "home"), "cached"], ready) as gateway:
                # Direct before and after, so that a machine that drifts shows.
                before = uvloop.run(measure(upstream, "base", options.seconds))
                results["gateway"] = uvloop.run(measure(port, "auto", options.seconds))
                after = uvloop.run(measure(upstream, "base", options.seconds))
                results["direct"] = before
                results["direct_again"] = after
                if options.load:
                    results["load"] = uvloop.run(measure_load(port, options.load, gateway.pid))
            if options.routed:
                home = options.home or os.environ.get("MLX_ROUTER_HOME") or str(Path.home() / ".mlx-router")
                with process([*subject, str(config), home, "routed"], ready):
                    results["routed"] = uvloop.run(measure_routed(port))
            if options.litellm:
                peer = litellm.command(options.litellm, folder, other, upstream)
                with process(peer, f"http://127.0.0.1:{other}/health/liveliness"):
                    results["litellm"] = uvloop.run(measure(other, "base", options.seconds, key="none"))
    return results


if __name__ == "__main__":
    main()

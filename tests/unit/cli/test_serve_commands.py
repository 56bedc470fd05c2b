"""serve, stop, status, logs and service without anything running."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from mlx_router.cli import main
from mlx_router.cli.status import table_of
from mlx_router.config import Config, load_config


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(tmp_path / "home"), *arguments])


@pytest.mark.parametrize("command", ["serve", "stop", "status", "logs", "service", "demo"])
def test_help_explains_without_starting(tmp_path: Path, command: str) -> None:
    result = run(tmp_path, command, "--help")
    assert result.exit_code == 0
    assert "Usage: main" in result.output or command in result.output


def test_nothing_runs(tmp_path: Path) -> None:
    for arguments in (["status"], ["stop"]):
        result = run(tmp_path, *arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: nothing serves")
        assert len(result.output.strip().splitlines()) == 1
    result = run(tmp_path, "status", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["state"] == "stopped"


def test_check_tells_what_would_be_served(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--check")
    assert result.exit_code == 0, result.output
    assert "built-in defaults: no problems" in result.output
    assert "no router version yet" in result.output
    assert "memory: hardware:" in result.output


def test_the_configuration_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def read(*arguments: Any, **options: Any) -> Config:
        reads.append(arguments)
        return load_config(*arguments, **options)

    monkeypatch.setattr("mlx_router.config.load_config", read)
    (tmp_path / "mlx-router.toml").write_text("[gateway]\nport = 0\n")
    assert run(tmp_path, "serve", "--check", "--free-ports").exit_code == 0
    assert len(reads) == 1


def test_an_invalid_file_is_one_error_with_every_problem(tmp_path: Path) -> None:
    (tmp_path / "mlx-router.toml").write_text('[gateway]\nport = 99999\n[routes]\nspice = "nobody"\n')
    result = run(tmp_path, "serve", "--check")
    assert result.exit_code == 1
    assert "line 2: gateway.port must be at most 65535" in result.output
    assert "line 4: routes.spice = 'nobody' is no adapter, upstream or 'base'" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["logs"],
        ["router", "list"],
        ["adapter", "list"],
        ["adapter", "show", "mascarade-sql"],
        ["service", "uninstall"],
    ],
)
def test_a_bad_file_does_not_stand_in_the_way_of_what_needs_the_home_alone(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "mlx-router.toml").write_text("[gateway\n")
    result = run(tmp_path, *words)
    assert result.exit_code == 0, result.output


def test_status_says_that_the_file_is_bad_and_shows_the_rest(tmp_path: Path) -> None:
    (tmp_path / "mlx-router.toml").write_text("[gateway]\nport = 99999\n")
    result = run(tmp_path, "status")
    assert result.exit_code == 1
    assert "line 2: gateway.port must be at most 65535" in result.stderr
    assert "Error: nothing serves" in result.stderr
    assert json.loads(run(tmp_path, "status", "--json").stdout)["state"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "hardware"], "'hardware' is not NAME=PORT"),
        (["--port", "hardware=70000"], "is not NAME=PORT"),
        (["--gateway-port", "70000"], "Invalid value for '--gateway-port'"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(tmp_path, "serve", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_port_for_a_name_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--check", "--port", "hardwear=9400")
    assert result.exit_code == 1
    assert "did you mean 'hardware'?" in result.output


def test_the_last_lines_of_a_log_reach_into_the_rotated_file(tmp_path: Path) -> None:
    log = tmp_path / "home" / "log"
    log.mkdir(parents=True)
    (log / "code.log.1").write_text("one\ntwo\n")
    (log / "code.log").write_text("three\nfour")
    assert run(tmp_path, "logs", "code", "-n", "3").output == "two\nthree\nfour"
    assert run(tmp_path, "logs", "code", "-n", "0").output == ""
    assert run(tmp_path, "logs").output == "code\n"
    assert "did you mean 'code'" in run(tmp_path, "logs", "cod").output


def test_a_service_is_shown_installed_and_removed(tmp_path: Path) -> None:
    shown = run(tmp_path, "service", "show")
    assert shown.exit_code == 0
    assert "serve" in shown.output
    done = run(tmp_path, "service", "install", "--no-start")
    assert done.exit_code == 0, done.output
    assert "wrote " in done.output
    assert "start it with: " in done.output
    assert "unchanged" in run(tmp_path, "service", "install", "--no-start").output
    assert "removed " in run(tmp_path, "service", "uninstall").output
    assert "not installed" in run(tmp_path, "service", "uninstall").output


def test_a_service_is_installed_over_a_loaded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    launchctl = tools / "launchctl"  # as on a Mac: a label is loaded once, and a bootout returns before it is gone
    launchctl.write_text(
        f"#!/bin/sh\ncd {tools}\ncase $1 in\n"
        "bootout) mv loaded ending;;\n"
        "print) test -e loaded || { test -e ending && rm ending; };;\n"
        "bootstrap) test ! -e loaded && test ! -e ending && : > loaded;;\nesac\n"
    )
    launchctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr("sys.platform", "darwin")
    for _ in range(2):
        done = run(tmp_path, "service", "install")
        assert done.exit_code == 0, done.output
        assert "ran: launchctl bootstrap" in done.output


def child(name: str, **changes: Any) -> dict[str, Any]:
    return {
        **{"name": name, "kind": "specialist", "state": "ready", "serving": True, "reason": None, "pid": 12},
        **{"since": time.time() - 3700, "port": 9360, "restarts": 0, "memory_bytes": 21 * 2**30, "cpu_percent": 41.6},
        **{"running": 3, "waiting": 1, "requests": 1234, "requests_per_s": 5.25, "p50_ms": 812.4, "tokens_per_s": 97.4},
        **{"adapters": ["mascarade-kicad", "mascarade-spice"], "next_start": None, "log_error": None},
        **changes,
    }


def shown(width: int, *children: dict[str, Any], **changes: Any) -> str:
    record = {
        **{"state": "ready", "pid": 11, "started_at": time.time() - 90, "config": None, "children": list(children)},
        **{"memory": {"available_bytes": 10 * 2**30, "total_bytes": 64 * 2**30}, "notices": [], "stale_s": 0.2},
        **changes,
    }
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table_of(record))
    return capture.get()


def test_the_table_fits_into_a_hundred_columns_and_hides_nothing() -> None:
    text = shown(100, child("hardware"))
    row = next(line for line in text.splitlines() if line.startswith("hardware") and "9360" in line)
    assert row.split() == [
        *("hardware", "ready", "9360", "12", "1", "h", "1", "min", "1", "21.0", "GiB", "42%", "3+1", "1234"),
        *("5.2", "812", "97"),
    ]
    assert "hardware holds mascarade-kicad mascarade-spice" in text
    assert "10.0 GiB of 64.0 GiB available" in text


def test_eighty_columns_show_fewer_figures_and_cut_none() -> None:
    waiting = child("code", state="backing off", serving=False, next_start=time.time() + 8.2)
    text = shown(80, child("hardware"), waiting)
    assert "…" not in text
    assert "hardware  ready" in text
    assert "backing off" in text
    assert " 9360 " in text
    assert " starts " not in text


def test_trouble_is_told_under_the_table() -> None:
    waiting = child("code", state="backing off", serving=False, reason="ended by SIGKILL", pid=None, restarts=2)
    waiting |= {"next_start": time.time() + 8.2, "adapters": None, "log_error": "No space left on device"}
    waiting["log_lost_bytes"] = 77
    text = shown(120, waiting, state="degraded", config_error="line 3: no", notices=["a note"], stale_s=30.0)
    assert "backing off 8 s" in text
    for part in (
        *("code: ended by SIGKILL", "code log: No space left on device, 77 bytes lost"),
        *("configuration refused: line 3: no", "note: a note", "this is 30.0 s old"),
    ):
        assert part in text
    assert "not ready" in shown(120, child("code", serving=False, reason="loading"))

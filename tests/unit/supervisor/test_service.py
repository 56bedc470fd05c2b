"""Service files: what launchd and systemd would read."""

from __future__ import annotations

import configparser
import os
import plistlib
import pwd
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_router.config import Config, load_config
from mlx_router.errors import SupervisorError
from mlx_router.supervisor.service import make_service


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PATH", "/opt/my tools/bin:/usr/bin")
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "a home"
    home.mkdir()
    return replace(load_config(None, home), path=tmp_path / "100%.toml")


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_agent_of_a_mac(config: Config, tmp_path: Path) -> None:
    service = make_service(config, macos=True, system=False)
    assert service.path == tmp_path / "user" / "Library" / "LaunchAgents" / "org.mlx-router.serve.plist"
    found = plistlib.loads(service.text.encode())
    assert found["ProgramArguments"] == [
        *(sys.executable, "-m", "mlx_router", "--home", str(config.home), "--config", str(config.path), "serve")
    ]
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ExitTimeOut"] >= 60
    assert found["EnvironmentVariables"]["PATH"] == "/opt/my tools/bin:/usr/bin"
    assert "UserName" not in found
    assert service.start_commands[0][:2] == ("launchctl", "bootstrap")
    assert f"--home '{config.home}' --config {config.path} service install --system" in service.advice[1]


def test_the_daemon_of_a_mac_starts_with_nobody_logged_in(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    service = make_service(config, macos=True, system=True)
    assert service.path.parent == Path("/Library/LaunchDaemons")
    assert plistlib.loads(service.text.encode())["UserName"] == "ada"
    assert service.start_commands[0][2] == "system"


def test_the_unit_of_a_linux(config: Config, tmp_path: Path) -> None:
    service = make_service(config, macos=False, system=False)
    assert service.path == tmp_path / "config" / "systemd" / "user" / "mlx-router.service"
    found = unit(service.text)
    command = shlex.split(found["Service"]["ExecStart"])
    assert command[-5:] == ["--home", str(config.home), "--config", str(config.path).replace("%", "%%"), "serve"]
    assert found["Service"]["KillMode"] == "mixed"  # SIGTERM to serve alone, which drains in order
    assert int(found["Service"]["TimeoutStopSec"]) >= 60
    assert found["Service"]["Environment"] == '"PATH=/opt/my tools/bin:/usr/bin"'
    assert found["Install"]["WantedBy"] == "default.target"
    assert any("enable-linger" in line for line in service.advice)
    system = unit(make_service(config, macos=False, system=True).text)
    assert system["Install"]["WantedBy"] == "multi-user.target"
    assert system["Service"]["User"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_agrees(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "mlx-router.service"
    path.write_text(make_service(config, macos=False, system=False).text)
    done = subprocess.run(["systemd-analyze", "verify", "--user", str(path)], capture_output=True, text=True)
    assert "mlx-router.service" not in done.stderr


def test_installing_twice_changes_nothing(config: Config) -> None:
    service = make_service(config, macos=False, system=False)
    assert service.install()
    assert not service.install()
    assert service.path.read_text() == service.text
    assert (config.home / "log").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs for the whole machine")
@pytest.mark.parametrize("macos", [True, False])
def test_the_log_of_a_system_service_belongs_to_who_runs_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macos: bool
) -> None:
    monkeypatch.setattr("mlx_router.supervisor.service._SYSTEM_DIRS", (tmp_path / "daemons", tmp_path / "units"))
    monkeypatch.setenv("SUDO_USER", "nobody")
    config = replace(config, home=tmp_path / "user" / "home")
    make_service(config, macos=macos, system=True).install()
    nobody = pwd.getpwnam("nobody")
    for path in (config.home / "log", config.home, tmp_path / "user"):
        assert (path.stat().st_uid, path.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert tmp_path.stat().st_uid == 0  # was there before
    (config.home / "log").rmdir()
    make_service(config, macos=macos, system=False).install()
    assert (config.home / "log").stat().st_uid == 0


def test_a_mac_lets_go_of_the_old_service_before_the_new_one_starts(config: Config) -> None:
    service = make_service(config, macos=True, system=True)
    assert service.clear_commands == (("launchctl", "bootout", "system/org.mlx-router.serve"),)
    assert make_service(config, macos=False, system=True).clear_commands == ()


def test_a_command_that_fails_is_told_and_one_that_is_missing_too(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(config, macos=False, system=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(SupervisorError, match="there is no no-such-tool here"):
        service.run([("no-such-tool", "x")])
    with pytest.raises(SupervisorError, match=r"failed: .*no-such-file"):
        service.run([("ls", "/no-such-file")])
    assert service.run([("no-such-tool",), ("ls", "/no-such-file")], must=False) == ["ls /no-such-file"]
    assert service.run([("true",)]) == ["true"]

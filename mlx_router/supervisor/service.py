"""Service files: a launchd property list, a systemd unit. Text first, then the few commands that put it in force."""

from __future__ import annotations

import os
import plistlib
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_router.config import Config
from mlx_router.config.environment import invoking_user, search_path, service_dirs
from mlx_router.errors import SupervisorError
from mlx_router.files import write_atomic

LABEL = "org.mlx-router.serve"
UNIT = "mlx-router.service"
_SYSTEM_DIRS = (Path("/Library/LaunchDaemons"), Path("/etc/systemd/system"))
_RESTART_S = 10
_LOOK_S = 0.2  # between two looks at a service that is to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service file with the commands around it."""

    path: Path
    text: str
    logs: Path  # a folder that has to be there when it starts
    owner: str  # of that folder; empty: who installs
    start_commands: tuple[tuple[str, ...], ...]
    stop_commands: tuple[tuple[str, ...], ...]
    clear_commands: tuple[tuple[str, ...], ...] = ()  # before the start, for a service that is loaded; may fail
    loaded_command: tuple[str, ...] = ()  # succeeds as long as it is loaded
    drain_s: float = 0.0  # that it may take to end
    advice: tuple[str, ...] = ()

    def install(self) -> bool:
        """Write the file; False where it is there already. Raises SupervisorError."""
        try:
            self._make_logs()
            if self.path.is_file() and self.path.read_text(encoding="utf-8") == self.text:
                return False
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, self.text)
        except OSError as error:
            raise SupervisorError(f"{self.path}: {error.strerror or error}") from error
        return True

    def _make_logs(self) -> None:
        """The folder of logs and what it lies in; what root makes of it belongs to `owner`, who will write there."""
        made = [path for path in (self.logs, *self.logs.parents) if path == self.logs or not path.exists()]
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.owner and os.geteuid() == 0:
            user = pwd.getpwnam(self.owner)
            for path in made:
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def clear(self) -> list[str]:
        """Stop the service where it is loaded, and wait until it is gone; what was run."""
        done = self.run(self.clear_commands, must=False)
        end = time.monotonic() + self.drain_s
        while self.loaded_command and time.monotonic() < end and self._succeeds(self.loaded_command):
            time.sleep(_LOOK_S)
        return done

    @staticmethod
    def _succeeds(command: tuple[str, ...]) -> bool:
        return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode

    def run(self, commands: Iterable[tuple[str, ...]], *, must: bool = True) -> list[str]:
        """Run commands in order; what was run. Raises SupervisorError with what the first failure said."""
        done = []
        for command in commands:
            text = " ".join(command)
            if shutil.which(command[0]) is None:
                if must:
                    raise SupervisorError(f"{self.path} is written, but there is no {command[0]} here to run: {text}")
                continue
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0 and must:
                said = (result.stderr or result.stdout).strip().splitlines()
                raise SupervisorError(f"`{text}` failed: {said[-1] if said else result.returncode}")
            done.append(text)
        return done


def make_service(config: Config, *, macos: bool, system: bool) -> Service:
    """The service of a configuration, for this user or for the whole machine."""
    return _launchd(config, system) if macos else _systemd(config, system)


def command_line(config: Config) -> list[str]:
    """What the service runs: this interpreter, this home, this file."""
    command = [sys.executable, "-m", "mlx_router", "--home", str(config.home)]
    if config.path is not None:
        command += ["--config", str(config.path)]
    return [*command, "serve"]


def stop_s(config: Config) -> int:
    """How long stopping may take: both drains, one after the other."""
    drains = config.gateway.drain_timeout_s + max((item.drain_s for item in config.specialists), default=0.0)
    return int(drains + 2 * config.supervisor.grace_s) + 5


def _launchd(config: Config, system: bool) -> Service:
    folder = _SYSTEM_DIRS[0] if system else service_dirs()[0]
    path = folder / f"{LABEL}.plist"
    log = str(config.home / "log" / "service.log")
    content: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": command_line(config),
        "WorkingDirectory": str(config.home),
        "EnvironmentVariables": {"PATH": search_path()},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _RESTART_S,
        "ExitTimeOut": stop_s(config),
        "ProcessType": "Interactive",  # the system must not slow it down for being in the background
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if system:
        content["UserName"] = invoking_user()
    domain = "system" if system else f"gui/{os.getuid()}"
    bootout = ("launchctl", "bootout", f"{domain}/{LABEL}")
    advice = (
        ()
        if system
        else (
            "An agent starts when you log in. For a Mac without a screen, that starts with nobody logged in:",
            f"  sudo {' '.join(shlex.quote(word) for word in command_line(config)[:-1])} service install --system",
        )
    )
    return Service(
        path=path,
        logs=config.home / "log",
        owner=invoking_user() if system else "",
        text=plistlib.dumps(content, sort_keys=False).decode(),
        start_commands=(("launchctl", "bootstrap", domain, str(path)),),
        stop_commands=(bootout,),
        clear_commands=(bootout,),
        loaded_command=("launchctl", "print", f"{domain}/{LABEL}"),
        drain_s=stop_s(config) + _RESTART_S,
        advice=advice,
    )


def _systemd(config: Config, system: bool) -> Service:
    folder = _SYSTEM_DIRS[1] if system else service_dirs()[1]
    path = folder / UNIT
    scope = () if system else ("--user",)
    user = f"User={invoking_user()}\n" if system else ""
    text = f"""[Unit]
Description=mlx-router: one OpenAI endpoint over LoRA specialists
After=network.target

[Service]
Type=exec
{user}ExecStart={" ".join(_quoted(word).replace("$", "$$") for word in command_line(config))}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={str(config.home).replace("%", "%%")}
Environment={_quoted(f"PATH={search_path()}")}
Restart=on-failure
RestartSec={_RESTART_S}
KillMode=mixed
TimeoutStopSec={stop_s(config)}
NoNewPrivileges=yes

[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""
    advice = (
        () if system else (f"It starts at boot with nobody logged in after: loginctl enable-linger {invoking_user()}",)
    )
    return Service(
        path=path,
        text=text,
        logs=config.home / "log",
        owner=invoking_user() if system else "",
        start_commands=(("systemctl", *scope, "daemon-reload"), ("systemctl", *scope, "enable", "--now", UNIT)),
        stop_commands=(("systemctl", *scope, "disable", "--now", UNIT), ("systemctl", *scope, "daemon-reload")),
        advice=advice,
    )


def _quoted(word: str) -> str:
    """A word for a systemd command line: specifiers doubled, quoted where it has to be."""
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}"' if any(character in escaped for character in " \t\"'\\;") or not escaped else escaped

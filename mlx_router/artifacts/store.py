"""Router versions on disk.

    $MLX_ROUTER_HOME/router/
      CURRENT             name of the active version
      HISTORY             every activation, oldest first; rollback walks it backwards
      v0001/              one version: published whole, never changed
        SHA256SUMS        of every other file, in the format of sha256sum(1)

A version is built in a hidden folder, verified, then renamed; CURRENT is replaced last.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_router.errors import ArtifactError, VersionCorrupt, VersionNotFound
from mlx_router.files import sha256_file, write_atomic

SUMS = "SHA256SUMS"
REQUIRED = ("router.safetensors", "meta.json", "label_map.json", "metrics.json", "provenance.json")
_NAME = re.compile(r"v\d{4,}")


class RouterStore:
    """The versions under one home."""

    def __init__(self, home: Path) -> None:
        self.root = home / "router"

    def versions(self) -> list[str]:
        """Names, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(
            (path.name for path in self.root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)),
            key=lambda name: int(name[1:]),
        )

    def path(self, version: str) -> Path:
        """Folder of a version. Raises VersionNotFound."""
        if version not in self.versions():
            known = ", ".join(self.versions()) or "none"
            raise VersionNotFound(f"no router version {version!r} in {self.root}; there is: {known}")
        return self.root / version

    def current(self) -> str | None:
        """The active version's name, None before the first."""
        try:
            return (self.root / "CURRENT").read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to build a version in; it disappears unless `publish` takes it."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def next_name(self) -> str:
        """The name that the next published version gets."""
        versions = self.versions()
        return f"v{int(versions[-1][1:]) + 1 if versions else 1:04d}"

    def publish(self, draft: Path, seal: Callable[[Path, str], None] | None = None) -> str:
        """Give a finished draft the next free name, write its checksums and make it visible in one rename.

        `seal` may write last files that need the name.
        """
        missing = [name for name in REQUIRED if name != "provenance.json" and not (draft / name).is_file()]
        if missing:
            raise ArtifactError(f"the draft lacks {', '.join(missing)}")
        while True:
            name = self.next_name()
            if seal is not None:
                seal(draft, name)
            write_sums(draft)
            draft.chmod(0o755)
            try:
                draft.rename(self.root / name)
            except OSError:
                if name in self.versions():  # somebody else published at the same moment
                    continue
                raise
            _sync_directory(self.root)
            return name

    def verify(self, version: str) -> Path:
        """Check every hash of a version. Raises VersionCorrupt naming each bad file."""
        folder = self.path(version)
        problems = verify_sums(folder)
        if problems:
            raise VersionCorrupt.from_problems(f"router {version} is corrupt", problems)
        return folder

    def activate(self, version: str) -> None:
        """Point CURRENT at a verified version. A crash leaves the old one or the new one."""
        self.verify(version)
        write_atomic(self.root / "CURRENT", version + "\n")
        with (self.root / "HISTORY").open("a", encoding="utf-8") as history:
            history.write(version + "\n")

    def rollback(self) -> str:
        """Activate the version that was active before the current one; corrupt ones are passed over."""
        for version in self._activated_before():
            with suppress(VersionCorrupt, VersionNotFound):
                self.verify(version)
                self._drop_from_history(version)
                write_atomic(self.root / "CURRENT", version + "\n")
                return version
        raise VersionNotFound(f"no earlier router version to roll back to (active: {self.current() or 'none'})")

    def serving(self) -> tuple[str, str | None]:
        """The version to serve and a notice: the active one, else the last good one before it.

        Raises VersionNotFound where there is none, VersionCorrupt where none is good.
        """
        current = self.current()
        if current is None:
            raise VersionNotFound(f"no router version in {self.root}; train one with `mlx-router router train`")
        try:
            self.verify(current)
        except (VersionCorrupt, VersionNotFound) as error:
            for version in dict.fromkeys([*self._activated_before(), *reversed(self.versions())]):
                with suppress(VersionCorrupt, VersionNotFound):
                    self.verify(version)
                    return version, f"{error.message}; serving {version} instead"
            raise
        return current, None

    def _history(self) -> list[str]:
        try:
            return (self.root / "HISTORY").read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []

    def _activated_before(self) -> list[str]:
        """Versions that were active before the current one, latest first."""
        current = self.current()
        return list(dict.fromkeys(version for version in reversed(self._history()) if version != current))

    def _drop_from_history(self, version: str) -> None:
        """Forget activations after the last one of `version`, so that a second rollback goes further back."""
        history = self._history()
        last = len(history) - 1 - history[::-1].index(version)
        write_atomic(self.root / "HISTORY", "".join(f"{name}\n" for name in history[: last + 1]))


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of a version."""
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]
    write_atomic(folder / SUMS, "".join(lines))


def verify_sums(folder: Path) -> list[str]:
    """Problems of a version's files, one line each; empty when all is well."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS}: {error}"]
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    problems = [f"{name}: not listed in {SUMS}" for name in REQUIRED if name not in wanted]
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256_file(path) != digest:
            problems.append(f"{name}: sha256 differs from the published one")
    return problems


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

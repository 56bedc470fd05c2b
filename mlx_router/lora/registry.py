"""Adapters as things with a name: their manifests, and the weights that are installed for them.

    $HOME/adapters/<name>/
      adapter.toml          manifest of an adapter that does not come with the program, or one that takes its place
      CURRENT               the version that serves: the first 12 digits of its digest
      state.toml            pinned, and quarantined versions with their reasons
      <digest12>/           one version: published whole, never changed
        adapters.safetensors, adapter_config.json, adapter.toml (as installed), provenance.json

A version is built in a hidden folder, checked, then renamed; CURRENT is replaced last. Nothing here imports mlx.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from mlx_router import resources
from mlx_router.errors import AdapterError, AdapterNotFound
from mlx_router.files import write_atomic, write_json
from mlx_router.lora import installed
from mlx_router.lora.installed import CHECK, CURRENT, PROVENANCE, STATE
from mlx_router.lora.manifest import (
    ACTIVE,
    FILE,
    LOCAL,
    QUARANTINED,
    Manifest,
    check_name,
    did_you_mean,
    double_claims,
    read_manifest,
    read_manifests,
)
from mlx_router.lora.names import in_layer
from mlx_router.lora.tomlfile import to_toml

MISSING = "missing"
LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter with what is installed for it."""

    name: str
    title: str
    domains: tuple[str, ...]  # that it claims
    specialist: str
    path: Path | None  # folder of the current version; None: no weights are installed
    sha256: str | None  # digest of the current version
    status: str  # active, missing or quarantined
    reason: str  # why it is not active
    pinned: bool
    version: str | None  # first 12 digits of the digest
    versions: tuple[str, ...]  # installed
    manifest: Manifest  # of the current version where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRoute:
    """Which adapter answers a domain."""

    adapter: str
    specialist: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation did."""

    name: str
    path: Path
    digest: str  # sha256:…
    previous: str | None  # digest of the version that served before
    new: bool  # False: these very weights were installed already


class Registry:
    """Every adapter that has a manifest, with the weights installed under one home. Files are read on each call."""

    def __init__(self, home: Path, manifests: Mapping[str, Manifest] | None = None) -> None:
        """`manifests`: instead of those that come with the program and those under `home`."""
        self.root = home / "adapters"
        self._given = manifests

    def manifests(self) -> Mapping[str, Manifest]:
        """By name. Raises AdapterError with every problem."""
        if self._given is not None:
            return self._given
        return read_manifests(resources.adapters_dir(), self.root)

    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self.manifests())

    def manifest(self, name: str) -> Manifest:
        """The manifest of one adapter. Raises AdapterNotFound with the nearest name."""
        manifests = self.manifests()
        if name not in manifests:
            raise AdapterNotFound(f"no adapter {name!r}{did_you_mean(name, manifests)}", param="lora_name")
        return manifests[name]

    def find(self, name: str) -> AdapterRecord:
        """One adapter as it stands now. Raises AdapterNotFound with the nearest name."""
        return self._record(self.manifest(name))

    def records(self) -> list[AdapterRecord]:
        """Every adapter, by name."""
        return [self._record(manifest) for _, manifest in sorted(self.manifests().items())]

    def version(self, name: str, version: str | None = None) -> Path:
        """Folder of an installed version, the current one by default; `version` may be any start of its digest."""
        record = self.find(name)
        if version is None:
            if record.path is None:
                raise AdapterNotFound(
                    f"adapter {name}: {record.reason}; install it with `mlx-router adapter add {name} PATH`"
                )
            return record.path
        wanted = version.removeprefix("sha256:")[:12]
        hits = [item for item in record.versions if wanted and item.startswith(wanted)]
        if len(hits) != 1:
            listed = ", ".join(record.versions) or "none"
            raise AdapterNotFound(f"adapter {name} has no one version {version!r}; installed: {listed}")
        return self.root / name / hits[0]

    def _record(self, manifest: Manifest) -> AdapterRecord:
        name, folder = manifest.name, self.root / manifest.name
        versions = tuple(installed.versions(folder))
        current = installed.current(folder)
        path = folder / current if current in versions else None
        facts, damage = manifest, ""
        try:
            state = installed.read_state(folder)
            found = read_manifest(path / FILE) if path is not None else manifest
            evaluation = installed.evaluation(path) if path is not None else {}
        except AdapterError as error:  # this adapter takes no traffic; the others do
            path, state, damage = None, {}, error.message.splitlines()[0]
        if path is not None:
            facts = replace(
                manifest,
                **{
                    key: getattr(found, key)
                    for key in ("base", "source", "revision", "sha256", "licence", "rank", "scale", "targets")
                },
                evaluation=evaluation,  # of these very weights, or none
            )
        status, reason = self._status(manifest, facts, path, current, state)
        if damage:
            status, reason = MISSING, damage
        return AdapterRecord(
            name=name,
            title=manifest.title,
            domains=manifest.domains,
            specialist=manifest.specialist,
            path=path,
            sha256=facts.sha256 if path is not None else None,
            status=status,
            reason=reason,
            pinned=bool(state.get("pinned", False)),
            version=current if path is not None else None,
            versions=versions,
            manifest=facts,
        )

    @staticmethod
    def _status(
        manifest: Manifest, facts: Manifest, path: Path | None, current: str | None, state: Mapping[str, Any]
    ) -> tuple[str, str]:
        if manifest.status == QUARANTINED and (not manifest.sha256 or _same(manifest.sha256, facts.sha256)):
            return QUARANTINED, manifest.reason
        if path is None:
            return MISSING, f"version {current} is gone" if current else "no weights are installed"
        if path.name in state.get(QUARANTINED, {}):
            return QUARANTINED, str(state[QUARANTINED][path.name])
        return ACTIVE, ""

    # -- changes ------------------------------------------------------------------------------------------------

    def add_manifest(self, manifest: Manifest) -> None:
        """Make an adapter known under this home. Raises AdapterError where a domain is claimed already."""
        check_name(manifest.name)
        others = [item for name, item in self.manifests().items() if name != manifest.name]
        problems = double_claims([*others, manifest])
        if problems:
            raise AdapterError.from_problems(f"adapter {manifest.name} cannot be added", problems)
        with self._locked(manifest.name) as folder:
            write_atomic(folder / FILE, manifest.to_toml())

    def install(
        self,
        name: str,
        source: Path,
        *,
        activate: bool = True,
        verify: bool = True,
        provenance: Mapping[str, Any] | None = None,
        base: str | None = None,
        origin: str | None = None,
        revision: str = "",
    ) -> Installed:
        """Copy the adapter in folder `source`, check all that needs no model, publish it; serve it if `activate`.

        `verify`: the weights must be those that the manifest's sha256 names, where it names any. `origin`: the hub
        name that they come from. Raises AdapterError, and nothing has changed then.
        """
        from mlx_router.lora.load import read_adapter

        manifest = self.manifest(name)
        given = read_adapter(source, name=name, sha256=manifest.sha256 or None if verify else None)
        with self._locked(name) as folder:
            previous = self._record(manifest).sha256
            with installed.draft(folder) as draft:
                installed.copy(source, draft)
                files = read_adapter(draft, name=name, sha256=given.digest)
                keys = files.keys or tuple(sorted({in_layer(module) for module in files.modules}))
                facts = replace(
                    manifest,
                    status=ACTIVE,
                    reason="",
                    base=base or manifest.base,
                    source=origin or LOCAL,
                    revision=revision,
                    sha256=files.digest,
                    rank=files.rank,
                    scale=files.scale,
                    targets=keys,
                    evaluation={},
                )
                write_atomic(draft / FILE, facts.to_toml())
                if provenance is not None:
                    write_json(draft / PROVENANCE, provenance)
                target = folder / files.digest.removeprefix("sha256:")[:12]
                new = not installed.whole(target, files.digest)
                if new:
                    shutil.rmtree(target, ignore_errors=True)
                    draft.chmod(0o755)
                    draft.rename(target)
                    installed.sync(folder)
            if activate:
                write_atomic(folder / CURRENT, target.name + "\n")
        return Installed(name=name, path=target, digest=files.digest, previous=previous, new=new)

    def activate(self, name: str, version: str) -> Path:
        """Serve an installed version from now on."""
        path = self.version(name, version)
        with self._locked(name) as folder:
            write_atomic(folder / CURRENT, path.name + "\n")
        return path

    def remove(self, name: str, version: str | None = None) -> list[str]:
        """Delete one installed version, or all of them with the adapter's own manifest: the versions deleted.

        CURRENT goes first, so that nobody is sent to files that are being deleted, and the lock last.
        """
        self.manifest(name)
        with self._locked(name) as folder:
            record = self.find(name)
            chosen = [self.version(name, version).name] if version else list(record.versions)
            if record.version in chosen:
                (folder / CURRENT).unlink(missing_ok=True)
            for item in chosen:
                shutil.rmtree(folder / item)
            if version is None:
                for draft in folder.glob(".draft-*"):  # of an `add` that was killed: nobody builds under our lock
                    shutil.rmtree(draft)
                for file in (FILE, STATE, LOCK):
                    (folder / file).unlink(missing_ok=True)
                with suppress(OSError):  # somebody adds already
                    folder.rmdir()
        return chosen

    def quarantine(self, name: str, reason: str, version: str | None = None) -> None:
        """Keep a version (the current one by default) from taking traffic, and remember why."""
        path = self.version(name, version)
        self._change_state(name, lambda state: state.setdefault(QUARANTINED, {}).__setitem__(path.name, reason))

    def release(self, name: str, version: str | None = None) -> None:
        """End the quarantine of a version (the current one by default)."""
        path = self.version(name, version)
        self._change_state(name, lambda state: state.get(QUARANTINED, {}).pop(path.name, None))

    def quarantined(self, name: str) -> dict[str, str]:
        """Versions in quarantine, with their reasons."""
        self.manifest(name)
        found = installed.read_state(self.root / name).get(QUARANTINED, {})
        return {str(version): str(reason) for version, reason in found.items()}

    def pin(self, name: str, pinned: bool) -> None:
        """Remember whether specialists keep this adapter resident."""
        self.manifest(name)
        self._change_state(name, lambda state: state.__setitem__("pinned", pinned))

    def record_check(self, name: str, version: str, figures: Mapping[str, Any]) -> None:
        """Keep the figures of a check beside the version that they belong to."""
        write_json(self.version(name, version) / CHECK, dict(figures))

    def _change_state(self, name: str, change: Any) -> None:
        with self._locked(name) as folder:
            state = installed.read_state(folder)
            change(state)
            write_atomic(folder / STATE, to_toml(state))

    @contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """The adapter's folder, held by this process alone; an OSError in it becomes an AdapterError."""
        folder = self.root / name
        try:
            with _held(folder):
                yield folder
        except OSError as error:
            raise AdapterError(f"{folder}: {error.strerror or error}") from error


def routes_from_manifests(records: Iterable[AdapterRecord]) -> dict[str, AdapterRoute]:
    """domain -> the adapter that answers it: its own, or one that stands in where its own is not active.

    A domain that no adapter claims or stands in for is absent: the base answers it.
    """
    known = list(records)
    routes = {
        domain: AdapterRoute(adapter=item.name, specialist=item.specialist, status=item.status, reason=item.reason)
        for item in known
        for domain in item.domains
    }
    for item in known:
        for domain in item.manifest.stands_in if item.status == ACTIVE else ():
            own = routes.get(domain)
            if own is None or own.status != ACTIVE:
                routes[domain] = AdapterRoute(adapter=item.name, specialist=item.specialist, status=ACTIVE, reason="")
    return dict(sorted(routes.items()))


def _held(folder: Path) -> IO[str]:
    """The lock file of a folder, made where it is not there and held until it is closed."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # `remove` has deleted the folder, and its lock with it: make them anew
            lock = path.open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            except BaseException:
                lock.close()
                raise
            lock.close()


def _same(one: str, other: str) -> bool:
    return one.removeprefix("sha256:") == other.removeprefix("sha256:")

"""adapters/<name>/adapter.toml: what is known of an adapter before, and without, its weights.

A domain is claimed by at most one adapter (`domains`). An adapter may offer to stand in for further domains
(`stands_in`): it answers those whose own adapter has no weights here, or is quarantined.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlx_router.errors import AdapterError
from mlx_router.lora.tomlfile import to_toml

FILE = "adapter.toml"
LOCAL = "local"
ACTIVE, QUARANTINED = "active", "quarantined"
RESERVED = frozenset({"base", "auto", "default_model"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One adapter, as its adapter.toml has it."""

    name: str
    title: str
    domains: tuple[str, ...]  # claimed: no other adapter may claim them
    specialist: str  # the server that holds it, unless a configuration lists it elsewhere
    stands_in: tuple[str, ...] = ()
    status: str = ACTIVE
    reason: str = ""  # of a quarantine
    base: str = ""  # the base model that it belongs to
    source: str = LOCAL  # a hub name, or "local": installed by hand, or trained here
    revision: str = ""  # of the hub repository
    sha256: str = ""  # of the weights file, or an adapter's digest; empty: whatever is installed
    licence: str = ""
    rank: int = 16
    scale: float = 2.0
    targets: tuple[str, ...] = ()  # module names within a layer; empty: every kind that mlx-lm adapts
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # figures of the last check

    def to_toml(self) -> str:
        """The text of adapter.toml; empty fields are left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        kept = {key: value for key, value in values.items() if value not in ("", (), {}) or key == "domains"}
        return to_toml(kept)


def check_name(name: str) -> None:
    """Raise AdapterError unless `name` can name an adapter, a folder and a model at once."""
    if not _NAME.fullmatch(name):
        raise AdapterError(f"adapter name {name!r}: lower-case letters, digits, '.', '_' and '-', at most 63")
    if name in RESERVED:
        raise AdapterError(f"adapter name {name!r} is reserved for the base and the router")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else nothing. A missing prefix counts as near."""
    choices = list(known)
    near = [choice for choice in choices if choice.endswith(f"-{name}")]
    near = near or difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_manifest(path: Path) -> Manifest:
    """Read one adapter.toml. Raises AdapterError with every problem in it at once."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: {error}") from error
    return parse_manifest(raw, str(path))


def parse_manifest(raw: Mapping[str, Any], where: str) -> Manifest:
    """A Manifest from decoded TOML; `where` names it in errors."""
    known = {item.name: item for item in fields(Manifest)}
    problems = [f"{key}: no such key{did_you_mean(key, known)}" for key in raw if key not in known]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            continue
        wanted = str(known[key].type)
        if wanted.startswith("tuple"):
            if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                problems.append(f"{key} is {value!r}, not a list of strings")
                continue
            if len(set(value)) != len(value):
                problems.append(f"{key} names something twice")
            value = tuple(value)
        elif wanted == "float":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                problems.append(f"{key} is {value!r}, not a finite number")
                continue
            value = float(value)
        elif wanted == "int" and (type(value) is not int or value < 1):
            problems.append(f"{key} is {value!r}, not a positive integer")
            continue
        elif wanted == "str" and not isinstance(value, str):
            problems.append(f"{key} is {value!r}, not a string")
            continue
        elif wanted.startswith("Mapping") and not isinstance(value, dict):
            problems.append(f"{key} is {value!r}, not a table")
            continue
        values[key] = value
    problems += [f"{key} is missing" for key in ("name", "title", "domains", "specialist") if key not in raw]
    if not problems:
        problems += _value_problems(values)
    if problems:
        raise AdapterError.from_problems(f"{where} cannot be used", problems)
    return Manifest(**values)


def _value_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    try:
        check_name(values["name"])
    except AdapterError as error:
        problems.append(error.message)
    status, sha256 = values.get("status", ACTIVE), values.get("sha256", "")
    if status not in (ACTIVE, QUARANTINED):
        problems.append(f"status is {status!r}, neither {ACTIVE!r} nor {QUARANTINED!r}")
    if status == QUARANTINED and not values.get("reason"):
        problems.append("status is 'quarantined' without a reason")
    if sha256 and not _SHA256.fullmatch(sha256):
        problems.append(f"sha256 is {sha256!r}, not 64 hex digits")
    both = sorted(set(values["domains"]) & set(values.get("stands_in", ())))
    problems += [f"{domain} is in domains and in stands_in" for domain in both]
    return problems


def read_manifests(*folders: Path) -> dict[str, Manifest]:
    """Manifests of `<folder>/<name>/adapter.toml` by name; a later folder's takes an earlier one's place.

    Raises AdapterError with every problem of every file, and every domain that is claimed twice, at once.
    """
    found: dict[str, Manifest] = {}
    problems: list[str] = []
    for folder in folders:
        for path in sorted(folder.glob(f"*/{FILE}")):
            try:
                manifest = read_manifest(path)
            except AdapterError as error:
                problems.append(error.message)
                continue
            if manifest.name != path.parent.name:
                problems.append(f"{path}: its name is {manifest.name!r}, its folder {path.parent.name!r}")
            found[manifest.name] = manifest
    problems += double_claims(found.values())
    if problems:
        raise AdapterError.from_problems("adapter manifests cannot be used", problems)
    return dict(sorted(found.items()))


def double_claims(manifests: Iterable[Manifest]) -> list[str]:
    """A line for each domain that more than one adapter claims."""
    claims: dict[str, list[str]] = {}
    for manifest in manifests:
        for domain in manifest.domains:
            claims.setdefault(domain, []).append(manifest.name)
    return [
        f"domain {domain} is claimed by {' and '.join(names)}" for domain, names in claims.items() if len(names) > 1
    ]

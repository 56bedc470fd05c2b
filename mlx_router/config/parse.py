"""Decoded TOML into the dataclasses of the schema. Every problem is noted with its place; nothing is raised here."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from mlx_router.config import lines as toml
from mlx_router.config.bounds import Choice, FromEnvironment, Pattern, Port, Range, Size, size_bytes
from mlx_router.config.schema import (
    Config,
    EncoderConfig,
    GatewayConfig,
    PolicyConfig,
    SecurityConfig,
    SpecialistConfig,
    SupervisorConfig,
    UpstreamConfig,
)

SECTIONS: dict[str, type[Any]] = {
    "gateway": GatewayConfig,
    "policy": PolicyConfig,
    "encoder": EncoderConfig,
    "security": SecurityConfig,
    "supervisor": SupervisorConfig,
}
ARRAYS: dict[str, tuple[str, type[Any]]] = {
    "specialist": ("specialists", SpecialistConfig),
    "upstream": ("upstreams", UpstreamConfig),
}
TOP = (*SECTIONS, *ARRAYS, "routes", "adapter_roots")
_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_BAD = object()


class Problems:
    """What is wrong, each with its line where a text is known."""

    def __init__(self, text: str = "") -> None:
        self._lines = toml.find_lines(text) if text else {}
        self._found: list[tuple[int, str]] = []

    def add(self, path: toml.Path, message: str) -> None:
        """Note one problem of the value at `path`."""
        line = toml.line_of(self._lines, path)
        self._found.append((line or 0, f"line {line}: {message}" if line else message))

    def __bool__(self) -> bool:
        return bool(self._found)

    def messages(self) -> list[str]:
        """In the order of the file."""
        return [message for _, message in sorted(self._found, key=lambda item: item[0])]


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message: `; did you mean …?`, or nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def dotted(path: toml.Path) -> str:
    """("specialist", 0, "port") -> "specialist[1].port", counted as people count."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def hints(cls: Any) -> dict[str, Any]:
    """Resolved annotations of a dataclass, bounds included."""
    return get_type_hints(cls, include_extras=True)


def read_config(raw: Mapping[str, Any], *, home: Path, path: Path | None, problems: Problems) -> Config:
    """Build a Config from decoded TOML. Values with problems are left at their defaults."""
    folder = path.parent if path is not None else Path.cwd()
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in SECTIONS:
            values[key] = _table(SECTIONS[key], value, (key,), folder, problems)
        elif key in ARRAYS:
            name, cls = ARRAYS[key]
            values[name] = _tables(cls, value, key, folder, problems)
        elif key == "routes":
            read = _convert(value, Mapping[str, str], (key,), folder, problems)
            values[key] = {} if read is _BAD else read
        elif key == "adapter_roots":
            read = _convert(value, tuple[Path, ...], (key,), folder, problems)
            values[key] = () if read is _BAD else read
        else:
            singular = f"; did you mean [[{key[:-1]}]]?" if key[:-1] in ARRAYS else suggest(key, TOP)
            problems.add((key,), f"unknown section {key!r}{singular}")
    return Config(home=home, path=path, **{key: value for key, value in values.items() if value is not None})


def _tables(cls: type[Any], raw: Any, key: str, folder: Path, problems: Problems) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        problems.add((key,), f"{key} must be a list of tables: write [[{key}]]")
        return ()
    found = [_table(cls, item, (key, index), folder, problems) for index, item in enumerate(raw)]
    return tuple(item for item in found if item is not None)


def _table(cls: type[Any], raw: Any, path: toml.Path, folder: Path, problems: Problems) -> Any:
    """One dataclass; None where `raw` is no table at all."""
    if not isinstance(raw, dict):
        problems.add(path, f"{dotted(path)} must be a table, got {_kind(raw)}")
        return None
    known = hints(cls)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            problems.add((*path, key), f"unknown key {dotted((*path, key))}{suggest(key, known)}")
            continue
        read = _convert(value, known[key], (*path, key), folder, problems)
        if read is not _BAD:
            values[key] = read
    for item in dataclasses.fields(cls):
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and item.name not in raw:
            problems.add(path, f"{dotted(path)} needs {item.name}")
        if needed and item.name not in values:  # something, so that the rest can be looked at too
            values[item.name] = 0 if known[item.name] == Port else dotted(path)
    return cls(**values)


def _convert(value: Any, hint: Any, path: toml.Path, folder: Path, problems: Problems) -> Any:
    """`value` as the annotation wants it, or _BAD after noting why not."""
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        bounds = tuple(rest)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):  # Path | None: a file cannot write None
        hint = next(item for item in get_args(hint) if item is not type(None))
        origin = get_origin(hint)
    if origin is tuple:
        return _list(value, get_args(hint)[0], path, folder, problems)
    if origin is not None:
        return _mapping(value, get_args(hint)[1], path, folder, problems)
    if isinstance(value, str) and any(isinstance(item, Size) for item in bounds):
        size = size_bytes(value)
        if size is None:
            problems.add(path, f"{dotted(path)} must be a number of bytes or a size like '4 GiB', got {value!r}")
            return _BAD
        value = size
    wanted = str if hint is Path else hint
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        problems.add(path, f"{dotted(path)} must be {_WORDS[hint]}, got {_kind(value)}")
        return _BAD
    if problem := _outside(value, bounds):
        problems.add(path, f"{dotted(path)} {problem}")
        return _BAD
    return _path(value, folder) if hint is Path else value


def _list(value: Any, hint: Any, path: toml.Path, folder: Path, problems: Problems) -> Any:
    if not isinstance(value, list):
        problems.add(path, f"{dotted(path)} must be a list, got {_kind(value)}")
        return _BAD
    found = [_convert(item, hint, (*path, index), folder, problems) for index, item in enumerate(value)]
    for index, item in enumerate(value):
        if item in value[:index]:
            problems.add((*path, index), f"{dotted(path)} lists {item!r} twice")
    return tuple(item for item in found if item is not _BAD)


def _mapping(value: Any, hint: Any, path: toml.Path, folder: Path, problems: Problems) -> Any:
    if not isinstance(value, dict):
        problems.add(path, f"{dotted(path)} must be a table, got {_kind(value)}")
        return _BAD
    found = {key: _convert(item, hint, (*path, key), folder, problems) for key, item in value.items()}
    return {key: item for key, item in found.items() if item is not _BAD}


def _outside(value: Any, bounds: tuple[Any, ...]) -> str:
    for bound in bounds:
        if isinstance(bound, Range) and (problem := bound.problem(value)):
            return problem
        if isinstance(bound, Choice) and value not in bound.words:
            words = f"{', '.join(bound.words[:-1])} or {bound.words[-1]}"
            return f"must be {words}, got {value!r}{suggest(value, bound.words)}"
        if isinstance(bound, Pattern) and not re.match(bound.regex, value):
            return f"must be {bound.what}, got {value!r}"
        if isinstance(bound, FromEnvironment):
            return f"is not written into a file: {bound.instead}"
    return ""


def _path(text: str, folder: Path) -> Path:
    """`~` expanded; relative to the folder of the file."""
    return (folder / Path(text).expanduser()).absolute()


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: f"the string {value!r}", list: "a list", dict: "a table"}
    return names.get(type(value), repr(value))

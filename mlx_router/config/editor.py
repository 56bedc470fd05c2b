"""The JSON Schema of mlx-router.toml, for editors: made from the dataclasses, their bounds and their comments."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from mlx_router.config.bounds import SIZE_PATTERN, Choice, FromEnvironment, Pattern, Range, Size
from mlx_router.config.parse import ARRAYS, SECTIONS, hints
from mlx_router.config.schema import Config

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "string"}
_COMMENT = re.compile(r"^    (\w+):[^#\n]*(?:#\s*(.*))?$", re.MULTILINE)
_LATE = re.compile(r"^    (\w+):[^\n]*\n(?:        [^\n]*\n)*?    \)\s*#\s*(.*)$", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """The whole schema (draft 2020-12)."""
    properties: dict[str, Any] = {name: _table(cls) for name, cls in SECTIONS.items()}
    for name, (_, cls) in ARRAYS.items():
        properties[name] = {"type": "array", "items": _table(cls), "description": inspect.getdoc(cls)}
    own = _comments(Config)
    properties["routes"] = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": 'domain -> adapter, upstream or "base"; defaults come from the adapters\' manifests',
    }
    properties["adapter_roots"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": own["adapter_roots"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mlx-router.toml",
        "description": "Gateway, specialists, upstreams, routes and policy of mlx-router.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _table(cls: type[Any]) -> dict[str, Any]:
    comments = _comments(cls)
    properties: dict[str, Any] = {}
    required = []
    for item in dataclasses.fields(cls):
        hint = hints(cls)[item.name]
        if any(isinstance(bound, FromEnvironment) for bound in getattr(hint, "__metadata__", ())):
            continue
        entry = _value(hint)
        if comments.get(item.name):
            entry["description"] = comments[item.name]
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            required.append(item.name)
        elif item.default is not dataclasses.MISSING and item.default is not None:
            entry["default"] = list(item.default) if isinstance(item.default, tuple) else item.default
        properties[item.name] = entry
    table: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "description": inspect.getdoc(cls),
        "properties": properties,
    }
    return table | ({"required": required} if required else {})


def _value(hint: Any) -> dict[str, Any]:
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        bounds = tuple(rest)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _value(next(item for item in get_args(hint) if item is not type(None)))
    if origin is tuple:
        return {"type": "array", "items": _value(get_args(hint)[0]), "uniqueItems": True}
    if origin is not None:
        return {"type": "object", "additionalProperties": _value(get_args(hint)[1])}
    entry: dict[str, Any] = {"type": _TYPES[hint]}
    for bound in bounds:
        if isinstance(bound, Range):
            entry["exclusiveMinimum" if bound.above else "minimum"] = bound.low
            if bound.high is not None:
                entry["maximum"] = bound.high
        elif isinstance(bound, Choice):
            entry["enum"] = list(bound.words)
        elif isinstance(bound, Pattern):
            entry["pattern"] = bound.regex
        elif isinstance(bound, Size):
            entry = {"anyOf": [entry, {"type": "string", "pattern": SIZE_PATTERN}]}
    return entry


def _comments(cls: type[Any]) -> dict[str, str]:
    """What stands behind the fields in the source."""
    source = inspect.getsource(cls)
    found = {name: text for name, text in _COMMENT.findall(source) if text}
    found.update(dict(_LATE.findall(source)))
    return {name: text.replace("type: ignore", "").strip() for name, text in found.items()}

"""What a value of mlx-router.toml may be, as annotations that validation and the editor schema both read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)\s*$"


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two bounds, both included; `above` excludes the lower one."""

    low: float
    high: float | None = None
    above: bool = False

    def problem(self, value: float) -> str:
        """Why `value` is outside; empty where it is not."""
        if value < self.low or (self.above and value == self.low):
            return f"must be {'over' if self.above else 'at least'} {self.low:g}, got {value:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}, got {value:g}"
        return ""


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, which a file may also write as "4 GiB"."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A string of this form; `what` says it in words."""

    regex: str
    what: str


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """A field that no file sets; `instead` says where its value comes from."""

    instead: str


def size_bytes(text: str) -> int | None:
    """4294967296 for "4 GiB"; None for anything that is no size."""
    match = re.match(SIZE_PATTERN, text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


NAME = Pattern(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "letters, digits, dots, dashes and underscores")
ORIGIN = Pattern(
    r"^[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$",
    "an origin as browsers send it, like https://app.example or http://localhost:3000, without a path or '*'",
)
URL = Pattern(r"^https?://[^/\s?#]+(/[^\s?#]*)?$", "an http:// or https:// address")

Name = Annotated[str, NAME]
Url = Annotated[str, URL]
Origin = Annotated[str, ORIGIN]
Port = Annotated[int, Range(0, 65535)]  # 0: a free one, chosen at the start
Count = Annotated[int, Range(1)]
CountOrNone = Annotated[int, Range(0)]  # 0: no bound, or chosen
BytesOrNone = Annotated[int, Range(0), Size()]
Bytes = Annotated[int, Range(1), Size()]
Seconds = Annotated[float, Range(0, above=True)]
SecondsOrNone = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]

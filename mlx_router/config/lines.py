"""Where in a TOML text a value stands: tomllib tells no positions, and a problem without its line is half a help.

The text is known to be valid TOML, so this scanner only has to keep its place among strings, comments, brackets and
headers. Paths are tuples of keys and indices: ("specialist", 1, "port"), ("specialist", 0, "adapters", 3).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]

_STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """The line of a path, or of the closest thing around it; None where nothing of it is in the text."""
    for end in range(len(path), 0, -1):
        if (line := lines.get(path[:end])) is not None:
            return line
    return None


def find_lines(text: str) -> dict[Path, int]:
    """Line numbers, from 1, of every table, key and array element of a valid TOML text."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    """Reads from left to right; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}  # arrays of tables -> index of their last element
        self._counted, self._line = 0, 1

    def document(self) -> None:
        table: Path = ()
        while self._skip():
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        double = self.text.startswith("[[", self.at)
        line = self._here()
        self.at += 2 if double else 1
        keys = self._keys()
        self.at = self.text.index("]", self.at) + (2 if double else 1)
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            last = position == len(keys) - 1
            if double and last:
                self._tables[path] = self._tables.get(path, -1) + 1
                self.lines.setdefault(path, line)
            if path in self._tables:
                path = (*path, self._tables[path])
        self.lines.setdefault(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._here()
        path = (*table, *self._keys())
        for end in range(len(table) + 1, len(path) + 1):
            self.lines.setdefault(path[:end], line)
        self.at = self.text.index("=", self.at) + 1
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        if self.text[self.at] == "[":
            self._elements(path)
        elif self.text[self.at] == "{":
            self._members(path)
        elif string := _STRING.match(self.text, self.at):
            self.at = string.end()
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}\n#":
                self.at += 1

    def _elements(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.lines.setdefault((*path, index), self._here())
            self._value((*path, index))
            index += 1
        self.at += 1

    def _members(self, path: Path) -> None:
        self.at += 1
        while self._skip() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._pair(path)
        self.at += 1

    def _keys(self) -> list[str]:
        """A dotted key: bare and quoted parts."""
        keys: list[str] = []
        while True:
            self._skip()
            if string := _STRING.match(self.text, self.at):
                keys.append(next(iter(tomllib.loads(f"{string[0]} = 0"))))
                self.at = string.end()
            elif bare := _BARE.match(self.text, self.at):
                keys.append(bare[0])
                self.at = bare.end()
            self._skip()
            if not self.text.startswith(".", self.at):
                return keys
            self.at += 1

    def _skip(self) -> bool:
        """Pass white space and comments; whether anything is left."""
        if gap := _SKIP.match(self.text, self.at):
            self.at = gap.end()
        return self.at < len(self.text)

    def _here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

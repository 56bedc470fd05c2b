"""The corpus on disk: `<label>.jsonl` files of rows {"text", "labels", "lang", "origin"}.

The labels of a corpus are the names of its files; a file whose name starts with "_" holds rows of no label of its own
(`_outside.jsonl`: prompts that no specialist should get).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_router.errors import CorpusError

LANGUAGES = ("en", "fr", "de", "it", "es", "mixed", "other")
OUTSIDE = "_outside"
MAX_CHARS = 6000
# Byte-level tokenizer marks, WordPiece and SentencePiece marks, and UTF-8 read as Latin-1 or cp1252.
CORRUPT = re.compile(
    "[ĠĊ▁\ufffd]|(?:^|\\s)##\\w|Ã[\u0080-\u00bf©¨ªàâ´®¯§¹»¼]|â€[™œ\u009d“”¦]|Â[\u00a0°»«·]|<0x[0-9A-F]{2}>"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt. `labels[0]` is the primary label; the rest are right too. Empty for outside rows."""

    text: str
    labels: tuple[str, ...]
    lang: str
    origin: str
    where: str  # file:line

    @property
    def label(self) -> str:
        """The primary label, "_outside" where there is none."""
        return self.labels[0] if self.labels else OUTSIDE


@dataclass(frozen=True)
class Corpus:
    """Rows in file order, and the label set in alphabetical order."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    files: tuple[Path, ...]
    sha256: tuple[str, ...]  # of the files' bytes, as they were read


def normalize(text: str) -> str:
    """NFC, Unix line ends, no trailing blanks."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def read_corpus(directory: Path) -> Corpus:
    """Read every file of a corpus. Raises CorpusError naming every bad row with its file and line."""
    files = sorted(directory.glob("*.jsonl")) if directory.is_dir() else []
    labels = tuple(path.stem for path in files if not path.stem.startswith("_"))
    if not labels:
        raise CorpusError(f"no <label>.jsonl files in {directory}")
    rows: list[Row] = []
    problems: list[str] = []
    digests: list[str] = []
    for path in files:
        data = path.read_bytes()
        digests.append(hashlib.sha256(data).hexdigest())
        for number, line in enumerate(data.split(b"\n"), start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            row, found = parse_row(line, where, path.stem, labels)
            problems += [f"{where}: {problem}" for problem in found]
            if row is not None:
                rows.append(row)
    if problems:
        raise CorpusError.from_problems(f"{directory}: bad rows", problems)
    return Corpus(tuple(rows), labels, tuple(files), tuple(digests))


def parse_row(line: bytes, where: str, stem: str, labels: Sequence[str]) -> tuple[Row | None, list[str]]:
    """One line of a corpus file: the row, or None with everything that is wrong with it."""
    try:
        raw = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, [f"not UTF-8: {error.reason} at byte {error.start}"]
    except json.JSONDecodeError as error:
        return None, [f"not JSON: {error.msg} at column {error.colno}"]
    if not isinstance(raw, dict):
        return None, [f"expected an object, got {type(raw).__name__}"]
    problems = _field_problems(raw)
    if problems:
        return None, problems
    row = Row(normalize(raw["text"]), tuple(raw["labels"]), raw["lang"], raw.get("origin", ""), where)
    problems = text_problems(row.text) + _label_problems(row, stem, labels)
    return (None, problems) if problems else (row, [])


def text_problems(text: str) -> list[str]:
    """Why a text cannot be learned from; empty when it can."""
    problems = []
    if not text:
        problems.append("empty text")
    if len(text) > MAX_CHARS:
        problems.append(f"text of {len(text)} characters, at most {MAX_CHARS}")
    if match := CORRUPT.search(text):
        problems.append(f"mojibake or a tokenizer mark: {match.group()!r}")
    if match := _CONTROL.search(text):
        problems.append(f"control character {match.group()!r}")
    return problems


def _field_problems(raw: dict[str, object]) -> list[str]:
    problems = []
    if not isinstance(raw.get("text"), str):
        problems.append(f'"text" must be a string, got {type(raw.get("text")).__name__}')
    labels = raw.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        problems.append('"labels" must be a list of strings')
    if raw.get("lang") not in LANGUAGES:
        problems.append(f'"lang" must be one of {", ".join(LANGUAGES)}, got {raw.get("lang")!r}')
    return problems


def _label_problems(row: Row, stem: str, labels: Sequence[str]) -> list[str]:
    unknown = [label for label in row.labels if label not in labels]
    if unknown:
        return [f"unknown label {', '.join(map(repr, unknown))}"]
    if stem.startswith("_"):
        return [] if stem != OUTSIDE or not row.labels else ["rows of _outside have no labels"]
    if not row.labels or row.labels[0] != stem:
        return [f"the first label must be the file's, {stem!r}, got {list(row.labels)}"]
    if len(set(row.labels)) != len(row.labels):
        return ["a label is listed twice"]
    return []

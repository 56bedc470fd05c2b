"""The words themselves, beside their meaning: hashed character and word n-grams, one linear map.

MiniLM reads French poorly and splits part numbers, commands and error codes into meaningless pieces. A linear map over
hashed n-grams reads exactly those well. Its scores, times a weight chosen on validation rows, are added to the head's
logits; the head stays a complete router of its own, in the original system's format.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_router.errors import VersionCorrupt

LEXICAL_FILE = "lexical.safetensors"
NGRAMS = (2, 3, 4, 5)  # characters, across word boundaries
BUCKETS = 2**18
_HEAD_CHARS, _TAIL_CHARS = 2000, 1000  # of a long text
_COMBINING = re.compile("[\u0300-\u036f]+")
_DIGIT = re.compile(r"\d")
_REST = re.compile(r"[\W_]+")

FloatArray = npt.NDArray[np.float32]
Buckets = npt.NDArray[np.uint32]


def fold(text: str) -> str:
    """Lower case without accents, digits made alike, everything else than letters squeezed to one blank."""
    plain = _COMBINING.sub("", unicodedata.normalize("NFKD", text.lower()))
    return _REST.sub(" ", _DIGIT.sub("0", plain)).strip()


def hashed_ngrams(text: str) -> tuple[Buckets, FloatArray]:
    """Buckets of a text's n-grams, ascending, and 1 + log of how often each occurs."""
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        text = f"{text[:_HEAD_CHARS]} {text[-_TAIL_CHARS:]}"
    folded = fold(text)
    words = folded.split()
    chars = np.frombuffer(f" {folded} ".encode("utf-32-le", "replace"), dtype=np.uint32)
    hashes = [_rolling(chars, n) for n in NGRAMS if len(chars) >= n]
    keys = [f"w{word}" for word in words] + [f"{a} {b}" for a, b in pairwise(words)]
    hashes.append(np.array([zlib.crc32(key.encode("utf-8", "replace")) for key in keys], dtype=np.uint32))
    buckets, counts = np.unique(_mix(np.concatenate(hashes)) % np.uint32(BUCKETS), return_counts=True)
    return buckets, (1.0 + np.log(counts)).astype(np.float32)


def _rolling(chars: npt.NDArray[np.uint32], n: int) -> Buckets:
    """A hash of every run of n characters, all positions at once. Source: FNV-1a's multiplier."""
    size = len(chars) - n + 1
    out = np.full(size, n * 2654435761 % 2**32, dtype=np.uint32)
    for offset in range(n):
        out = (out ^ chars[offset : offset + size]) * np.uint32(16777619)
        out ^= out >> np.uint32(15)
    return out


def _mix(hashes: Buckets) -> Buckets:
    """Spread high bits into the low ones that pick the bucket. Source: MurmurHash3's finaliser."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    return hashes ^ (hashes >> np.uint32(13))


@dataclass(frozen=True)
class Lexical:
    """A linear map from weighted, L2-normalised n-gram counts to labels; F n-grams, C labels."""

    buckets: Buckets  # (F,), ascending
    idf: FloatArray  # (F,)
    weights: npt.NDArray[np.float16]  # (F, C)

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """n texts -> (n, C), about 0 for a label that does not fit and 1 for one that does."""
        out = np.zeros((len(texts), self.weights.shape[1]), dtype=np.float32)
        for row, text in enumerate(texts):
            place, value = self._features(text)
            out[row] = value @ self.weights[place].astype(np.float32)
        return out

    def _features(self, text: str) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Positions of a text's known n-grams and their normalised weights."""
        found, value = hashed_ngrams(text)
        place = np.searchsorted(self.buckets, found)
        place[place == len(self.buckets)] = 0
        known = self.buckets[place] == found
        place, value = place[known], value[known] * self.idf[place[known]]
        return place, value / max(float(np.linalg.norm(value)), 1e-6)

    def save(self, path: Path) -> None:
        """Write lexical.safetensors."""
        save_file({"buckets": self.buckets, "idf": self.idf, "weights": np.ascontiguousarray(self.weights)}, path)


def load_lexical(path: Path, classes: int) -> Lexical:
    """Read and check lexical.safetensors. Raises VersionCorrupt naming every problem."""
    try:
        tensors = load_file(path)
        lexical = Lexical(tensors["buckets"], tensors["idf"], tensors["weights"])
    except (OSError, SafetensorError, KeyError) as error:
        raise VersionCorrupt(f"{path}: not a lexical model: {error}") from error
    count = len(lexical.buckets)
    problems = [
        f"{name}: shape {tensors[name].shape}, expected {shape}"
        for name, shape in {"buckets": (count,), "idf": (count,), "weights": (count, classes)}.items()
        if tensors[name].shape != shape
    ]
    if not count or not np.all(np.diff(lexical.buckets.astype(np.int64)) > 0):
        problems.append("buckets: not ascending")
    if not np.isfinite(lexical.weights).all():
        problems.append("weights: hold NaN or infinity")
    if problems:
        raise VersionCorrupt.from_problems(f"{path} does not fit its meta.json", problems)
    return lexical

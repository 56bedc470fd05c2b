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
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlx_router.errors import VersionCorrupt

LEXICAL_FILE = "lexical.safetensors"
NGRAMS = (2, 3, 4, 5)  # characters, across word boundaries
BUCKETS = 2**20  # of the hash: at 2**18 too many n-grams share one, which costs 0.3 points on the hard set
BUCKETS_UNSAID = 2**18  # of files that do not say it, written before it was raised
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


def hashed_ngrams(text: str, size: int = BUCKETS) -> tuple[Buckets, FloatArray]:
    """Buckets, under `size`, of a text's n-grams, ascending, and 1 + log of how often each occurs."""
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        text = f"{text[:_HEAD_CHARS]} {text[-_TAIL_CHARS:]}"
    folded = fold(text)
    words = folded.split()
    chars = np.frombuffer(f" {folded} ".encode("utf-32-le", "replace"), dtype=np.uint32)
    hashes = [_rolling(chars, n) for n in NGRAMS if len(chars) >= n]
    keys = [f"w{word}" for word in words] + [f"{a} {b}" for a, b in pairwise(words)]
    hashes.append(np.array([zlib.crc32(key.encode("utf-8", "replace")) for key in keys], dtype=np.uint32))
    buckets, counts = np.unique(_mix(np.concatenate(hashes)) % np.uint32(size), return_counts=True)
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
    """A linear map from weighted, L2-normalised n-gram counts to labels; F n-grams, C labels.

    An n-gram's weights are 8-bit integers times a scale of its own: a prompt sums over hundreds of them, so the
    rounding cancels, and the model takes half of float16's memory.
    """

    buckets: Buckets  # (F,), ascending
    idf: FloatArray  # (F,)
    weights: npt.NDArray[np.int8]  # (F, C)
    scale: FloatArray  # (F,)
    size: int = BUCKETS  # of the hash that `buckets` come from

    @classmethod
    def rounded(cls, buckets: Buckets, idf: FloatArray, weights: FloatArray) -> Lexical:
        """From float32 weights (F, C), each n-gram's largest at 127."""
        scale = np.maximum(np.abs(weights).max(axis=1), np.finfo(np.float32).tiny) / 127
        return cls(buckets, idf, np.rint(weights / scale[:, None]).astype(np.int8), scale.astype(np.float32))

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """n texts -> (n, C), about 0 for a label that does not fit and 1 for one that does."""
        out = np.zeros((len(texts), self.weights.shape[1]), dtype=np.float32)
        for row, text in enumerate(texts):
            place, value = self._features(text)
            out[row] = (value * self.scale[place]) @ self.weights[place].astype(np.float32)
        return out

    def _features(self, text: str) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Positions of a text's known n-grams and their normalised weights."""
        found, value = hashed_ngrams(text, self.size)
        place = np.searchsorted(self.buckets, found)
        place[place == len(self.buckets)] = 0
        known = self.buckets[place] == found
        place, value = place[known], value[known] * self.idf[place[known]]
        return place, value / max(float(np.linalg.norm(value)), 1e-6)

    def save(self, path: Path) -> None:
        """Write lexical.safetensors."""
        tensors: dict[str, npt.NDArray[Any]] = {
            "buckets": self.buckets,
            "idf": self.idf,
            "weights": self.weights,
            "scale": self.scale,
        }
        save_file(tensors, path, metadata={"size": str(self.size)})


def load_lexical(path: Path, classes: int) -> Lexical:
    """Read and check lexical.safetensors. Raises VersionCorrupt naming every problem."""
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            size = int((file.metadata() or {}).get("size", BUCKETS_UNSAID))
        tensors.setdefault("scale", np.ones(len(tensors["buckets"]), dtype=np.float32))  # older weights are float16
        lexical = Lexical(tensors["buckets"], tensors["idf"], tensors["weights"], tensors["scale"], size)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise VersionCorrupt(f"{path}: not a lexical model: {error}") from error
    count = len(lexical.buckets)
    problems = [
        f"{name}: shape {tensors[name].shape}, expected {shape}"
        for name, shape in {
            "buckets": (count,),
            "idf": (count,),
            "weights": (count, classes),
            "scale": (count,),
        }.items()
        if tensors[name].shape != shape
    ]
    if not count or not np.all(np.diff(lexical.buckets.astype(np.int64)) > 0) or lexical.buckets[-1] >= size:
        problems.append(f"buckets: not ascending and under {size}")
    problems += [
        f"{name}: hold NaN or infinity" for name in ("idf", "weights", "scale") if not np.isfinite(tensors[name]).all()
    ]
    if problems:
        raise VersionCorrupt.from_problems(f"{path} does not fit its meta.json", problems)
    return lexical

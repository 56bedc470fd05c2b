"""The head's tensors in the original system's file format, and their plain numpy forward pass.

`router.safetensors`: `0.weight` (H, 384), `0.bias` (H,), `3.weight` (C, H), `3.bias` (C,), all float32; the numbers are
positions in Linear -> GELU -> Dropout -> Linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_router.artifacts.meta import Meta, read_meta
from mlx_router.encoder.encoder import DIM
from mlx_router.encoder.weights import HUB_NAME
from mlx_router.errors import VersionCorrupt

FloatArray = npt.NDArray[np.float32]
HEAD_FILE = "router.safetensors"
KEYS = ("0.weight", "0.bias", "3.weight", "3.bias")


@dataclass(frozen=True)
class HeadWeights:
    """Two linear layers; (B, D) -> (B, C)."""

    w1: FloatArray  # (H, D)
    b1: FloatArray  # (H,)
    w2: FloatArray  # (C, H)
    b2: FloatArray  # (C,)

    def logits(self, embeddings: FloatArray) -> FloatArray:
        """(B, D) -> (B, C) float32, before the sigmoid."""
        out: FloatArray = gelu(embeddings @ self.w1.T + self.b1) @ self.w2.T + self.b2
        return out

    @classmethod
    def folded(cls, heads: Sequence[HeadWeights]) -> HeadWeights:
        """One head whose logits are the mean of those of `heads`: their hidden units side by side."""
        return cls(
            np.concatenate([head.w1 for head in heads]),
            np.concatenate([head.b1 for head in heads]),
            (np.concatenate([head.w2 for head in heads], axis=1) / len(heads)).astype(np.float32),
            np.mean([head.b2 for head in heads], axis=0).astype(np.float32),
        )

    @property
    def hidden(self) -> int:
        """H, the width between the two layers."""
        return int(self.w1.shape[0])

    @property
    def classes(self) -> int:
        """C, the number of labels."""
        return int(self.w2.shape[0])

    def save(self, path: Path) -> None:
        """Write router.safetensors."""
        tensors = dict(zip(KEYS, (self.w1, self.b1, self.w2, self.b2), strict=True))
        save_file({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in tensors.items()}, path)


def load_version(folder: Path) -> tuple[Meta, HeadWeights]:
    """meta.json and the head of a version or a checkpoint. Raises VersionCorrupt naming every problem.

    Any width and any labels, but only of the encoder that runs here: another one's vectors mean something else.
    """
    meta = read_meta(folder)
    problems = []
    if meta.embedding_model.rpartition("/")[2] != HUB_NAME.rpartition("/")[2]:
        problems.append(f"made for the encoder {meta.embedding_model!r}; here {HUB_NAME} runs")
    if meta.embedding_dim != DIM:
        problems.append(f"made for embeddings of {meta.embedding_dim} numbers; here they have {DIM}")
    if problems:
        raise VersionCorrupt.from_problems(f"{folder} does not fit the encoder", problems)
    return meta, load_head(folder / HEAD_FILE, dim=meta.embedding_dim, classes=len(meta.domains))


def load_head(path: Path, *, dim: int, classes: int) -> HeadWeights:
    """Read and check router.safetensors. Raises VersionCorrupt naming every mismatch."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VersionCorrupt(f"{path}: not a readable safetensors file: {error}") from error
    missing = [key for key in KEYS if key not in tensors]
    if missing:
        raise VersionCorrupt(f"{path}: lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}")
    head = HeadWeights(*(tensors[key].astype(np.float32) for key in KEYS))
    hidden = head.hidden
    wanted = {
        "0.weight": (hidden, dim),
        "0.bias": (hidden,),
        "3.weight": (classes, hidden),
        "3.bias": (classes,),
    }
    problems = [
        f"{key}: shape {tensors[key].shape}, expected {shape}"
        for key, shape in wanted.items()
        if tensors[key].shape != shape
    ]
    problems += [f"{key}: holds NaN or infinity" for key in KEYS if not np.isfinite(tensors[key]).all()]
    if problems:
        raise VersionCorrupt.from_problems(f"{path} does not fit its meta.json", problems)
    return head


def gelu(x: FloatArray) -> FloatArray:
    """x * Phi(x) with the exact (erf) form."""
    half: FloatArray = (0.5 * x * (1.0 + _erf(x * np.float32(0.7071067811865476)))).astype(np.float32)
    return half


def _erf(x: FloatArray) -> FloatArray:
    """Error function to 1.5e-7. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26."""
    a = np.abs(x)
    t = 1.0 / (1.0 + 0.3275911 * a)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    out: FloatArray = np.sign(x) * (1.0 - poly * np.exp(-a * a))
    return out

"""The Python API: `Router.load().route(prompt) -> Decision`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.artifacts.meta import Meta
from mlx_router.artifacts.store import RouterStore
from mlx_router.config import EncoderConfig, home_dir
from mlx_router.encoder.encoder import Encoder, load_encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.head.calibration import Calibration
from mlx_router.head.classifier import Classifier
from mlx_router.head.decision import Decision, Thresholds, decide
from mlx_router.head.lexical import LEXICAL_FILE, load_lexical
from mlx_router.head.weights import load_version

CACHE_ENTRIES = 4096
_Ranked = tuple[tuple[tuple[str, float], ...], float]  # labels with their scores, best first; evidence


class Router:
    """One router version with its encoder. All calls come from the thread that loaded it."""

    def __init__(self, classifier: Classifier, meta: Meta, version: str, notice: str | None = None) -> None:
        self.classifier = classifier
        self.version = version
        self.notice = notice  # why another version than the active one is served
        self._meta = meta
        self._thresholds = Thresholds(
            per_label=meta.thresholds,
            out_of_domain=meta.out_of_domain,
            evidence=meta.evidence,
            fallback=meta.fallback,
            fallback_share=meta.fallback_share,
        )
        self.cache_entries = CACHE_ENTRIES  # 0 for a caller with a cache of its own
        self._cache: OrderedDict[str, _Ranked] = OrderedDict()

    @classmethod
    def load(
        cls,
        home: Path | None = None,
        *,
        version: str | None = None,
        encoder: EncoderConfig | None = None,
    ) -> Router:
        """Load the active version, or the one named; a corrupt active one gives way to the last good one.

        Raises VersionNotFound, VersionCorrupt, EncoderError.
        """
        root = home or home_dir()
        store = RouterStore(root)
        notice = None
        if version is None:
            version, notice = store.serving()
        else:
            store.verify(version)
        return cls.from_folder(store.path(version), version, root, encoder or EncoderConfig(), notice)

    @classmethod
    def from_folder(
        cls, folder: Path, version: str, home: Path, encoder: EncoderConfig, notice: str | None = None
    ) -> Router:
        """Load a version's files without looking at the store."""
        meta, head = load_version(folder)
        calibration = (
            Calibration.from_json(dict(meta.calibration))
            if meta.calibration is not None
            else Calibration.identity(len(meta.domains))
        )
        lexical = load_lexical(folder / LEXICAL_FILE, len(meta.domains)) if meta.lexical_weight else None
        classifier = Classifier(
            open_encoder(home, encoder), head, calibration, meta.domains, lexical, meta.lexical_weight
        )
        return cls(classifier, meta, version, notice)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every domain, in the order of the logits."""
        return self.classifier.labels

    @property
    def meta(self) -> dict[str, Any]:
        """meta.json, metrics included."""
        return self._meta.to_json()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """n texts -> (n, 384) float32, L2-normalised."""
        return self.classifier.encoder.encode(texts)

    def route(self, prompt: str, *, top: int = 5) -> Decision:
        """Decide where one prompt goes."""
        return self.route_many([prompt], top=top)[0]

    def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]:
        """Decide for many prompts, in order; `encode_ms` is each one's share of the batch."""
        started = time.perf_counter()
        ranked = self._ranked(prompts)
        share_ms = (time.perf_counter() - started) * 1e3 / max(len(prompts), 1)
        return [
            decide(scores, self._thresholds, evidence=evidence, top=top, router=self.version, encode_ms=share_ms)
            for scores, evidence in ranked
        ]

    def _ranked(self, prompts: Sequence[str]) -> list[_Ranked]:
        """Labels with their scores, best first, and the evidence; exact repeats come from an LRU cache."""
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        fresh = list(dict.fromkeys(prompt for prompt in prompts if prompt not in found))
        if fresh:
            scored = self.classifier.classify(fresh)
            for prompt, row, evidence in zip(fresh, scored.probabilities, scored.evidence, strict=True):
                order = np.argsort(-row, kind="stable")
                found[prompt] = tuple((self.labels[i], float(row[i])) for i in order), float(evidence)
        for prompt in prompts:
            self._cache[prompt] = found[prompt]
            self._cache.move_to_end(prompt)
        while len(self._cache) > self.cache_entries:
            self._cache.popitem(last=False)
        return [found[prompt] for prompt in prompts]


def open_encoder(home: Path, config: EncoderConfig) -> Encoder:
    """The published encoder as the configuration wants it, with its graph kept under `home`."""
    return load_encoder(
        find_encoder(config.path),
        runtime=config.runtime,
        dtype=config.dtype,
        threads=config.threads,
        cache=home / "cache" / "onnx",
    )

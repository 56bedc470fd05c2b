"""`router train`: corpus in, a new, verified and active router version out."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlx_router import resources
from mlx_router.artifacts.meta import Meta, label_map
from mlx_router.artifacts.provenance import TrainingRun, build_record
from mlx_router.artifacts.store import RouterStore
from mlx_router.encoder.encoder import DIM, Encoder
from mlx_router.encoder.weights import HUB_NAME
from mlx_router.files import write_json
from mlx_router.head.calibration import Calibration, fit_calibration
from mlx_router.head.classifier import Scores
from mlx_router.head.lexical import LEXICAL_FILE, Lexical
from mlx_router.head.weights import HeadWeights
from mlx_router.training import metrics
from mlx_router.training.blend import fit_blend
from mlx_router.training.corpus import Corpus
from mlx_router.training.dataset import Dataset, build_dataset
from mlx_router.training.embeddings import EmbeddingCache
from mlx_router.training.evaluate import evaluate, rejection
from mlx_router.training.fit import EpochLog, Recipe, fit_head
from mlx_router.training.report import write_report
from mlx_router.training.ridge import LexicalFits
from mlx_router.training.thresholds import choose_thresholds

FALLBACK = "general"


class Progress(Protocol):
    """What a long run tells while it runs."""

    def encoding(self, total: int) -> Callable[[int], None]: ...

    def ngrams(self, total: int) -> Callable[[], None]: ...

    def epochs(self, total: int) -> Callable[[EpochLog], None]: ...


@dataclass(frozen=True)
class Result:
    """What a training run produced."""

    version: str
    folder: Path
    metrics: dict[str, Any]


def train_router(
    corpus: Corpus, encoder: Encoder, home: Path, recipe: Recipe, progress: Progress, *, activate: bool = True
) -> Result:
    """Train on a corpus and publish a version. An interruption leaves no trace but the embedding cache."""
    clock = _Clock()
    cache = EmbeddingCache(home / "cache" / "embeddings", encoder)
    data = build_dataset(
        corpus, cache, seed=recipe.seed, fallback=FALLBACK, progress=progress.encoding(len(corpus.rows))
    )
    clock.lap("encode")
    fits = LexicalFits([row.text for row in data.rows], data.y, home / "cache" / "lexical")
    fitted = progress.ngrams(2)
    lexical = fits.fit(data.split.train)
    fitted()
    clock.lap("fit n-grams")
    valid = data.inside(data.split.valid)
    head, log = fit_head(
        data.example(data.split.train),
        data.example(valid),
        data.truth(valid),
        recipe,
        progress.epochs(recipe.all_epochs),
    )
    clock.lap("fit head")
    meta, figures, test_scores = _judge(head, lexical, data, encoder, recipe)
    store = RouterStore(home)
    with store.draft() as draft:
        head.save(draft / "router.safetensors")
        # The figures are those of a fit on the training rows; what is served has seen the other rows too, because
        # n-grams have no epochs to stop early and every new word counts.
        fits.fit(np.arange(len(data.rows))).save(draft / LEXICAL_FILE)
        fitted()
        write_json(draft / "meta.json", meta.to_json())
        write_json(draft / "label_map.json", label_map(meta.domains))
        write_json(draft / "metrics.json", {**figures, "epochs": [vars(entry) for entry in log]})
        write_report(draft, figures, data, test_scores)
        clock.lap("evaluate and report")
        run = TrainingRun(
            corpus=corpus,
            **_origin(corpus),
            counts=data.counts(),
            leaks=data.leaks,
            recipe=recipe.to_json(),
            encoder=encoder.files,
            runtime=encoder.arithmetic,
            metrics=figures,
            laps_s=clock.laps,
            wall_s=clock.wall_s(),
            cpu_s=clock.cpu_s(),
            finished=datetime.now(UTC),
        )
        version = store.publish(draft, lambda folder, name: build_record(folder, name, run, store.current()))
    if activate:
        store.activate(version)
    return Result(version, store.path(version), figures)


def _judge(
    head: HeadWeights, lexical: Lexical, data: Dataset, encoder: Encoder, recipe: Recipe
) -> tuple[Meta, dict[str, Any], metrics.Scores]:
    """Calibrate and choose thresholds on validation rows, then measure once on test rows.

    Returns the scores of the labelled test rows last, (n, C).
    """
    fitting, right = data.split.valid, data.y[data.split.valid] > 0
    meaning, words = head.logits(data.x[fitting]), lexical.scores(data.texts(fitting))
    blend = fit_blend(meaning, words, right)
    logits = meaning + blend.weight * words
    calibration = fit_calibration(logits, right, blend.temperature)

    def calibrated(logits: npt.NDArray[np.float32]) -> Scores:
        return Scores(calibration(logits), logits.max(axis=1).astype(np.float64))

    def score(index: npt.NDArray[np.intp]) -> Scores:
        return calibrated(head.logits(data.x[index]) + blend.weight * lexical.scores(data.texts(index)))

    valid, test = data.inside(fitting), data.inside(data.split.test)
    chosen_on, measured_on = calibrated(logits[np.isin(fitting, valid)]), score(test)
    test_scores = measured_on.probabilities
    thresholds = choose_thresholds(chosen_on, data.y[valid] > 0, data.labels, FALLBACK)
    figures = {
        "valid": evaluate(chosen_on.probabilities, data.truth(valid), data.labels),
        "test": evaluate(test_scores, data.truth(test), data.labels),
        "test_head_alone": metrics.summary(_plain(head.logits(data.x[test])), data.truth(test)),
        "rejection": rejection(
            measured_on, score(data.outside(data.split.test)), data.truth(test), data.labels, thresholds
        ),
        "leakage": {"near_duplicates_across_splits": data.leaks},
    }
    meta = Meta(
        embedding_model=HUB_NAME,
        embedding_dim=DIM,
        hidden_dim=head.hidden,
        domains=data.labels,
        calibration=calibration.to_json(),
        thresholds=thresholds.per_label,
        out_of_domain=thresholds.out_of_domain,
        evidence=thresholds.evidence,
        fallback=thresholds.fallback,
        fallback_share=thresholds.fallback_share,
        lexical_weight=blend.weight,
        encoder={
            "kind": "frozen",
            "sha256": encoder.files.model_sha256,
            "trained_through": encoder.arithmetic,
        },
        training={**recipe.to_json(), "split_seed": recipe.seed, "split": "80/10/10"},
        metrics={key: figures["test"][key] for key in ("n", "top1", "top3", "macro_f1", "weighted_f1", "ece")},
    )
    return meta, figures, test_scores


def _plain(logits: np.ndarray[Any, np.dtype[np.float32]]) -> metrics.Scores:
    """The sigmoid that the original system applies."""
    return Calibration.identity(logits.shape[1])(logits)


def _origin(corpus: Corpus) -> dict[str, str]:
    """What the record says of the texts: only of the shipped ones do we know who wrote them."""
    if corpus.files[0].parent == resources.corpus_dir():
        return {
            "corpus_source": "the corpus that ships with mlx-router, written for it",
            "corpus_rights": "every prompt was written for this project; none is copied from elsewhere",
        }
    return {
        "corpus_source": "a corpus supplied by the operator",
        "corpus_rights": "not known to this system: to be stated by the operator",
    }


class _Clock:
    """Wall and CPU time of the run and of its parts."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._cpu = _cpu_seconds()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 2)
        self._last = now

    def wall_s(self) -> float:
        return round(time.perf_counter() - self._started, 2)

    def cpu_s(self) -> float:
        return round(_cpu_seconds() - self._cpu, 2)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

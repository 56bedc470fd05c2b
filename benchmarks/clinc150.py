"""Intent detection with a stranger among the prompts: `python -m benchmarks.clinc150 --data data_full.json`.

Trains the router's own parts (head, n-grams, blend, calibration) on CLINC150's training rows, with cross-entropy
because each has one label, a dropout of 0.3 and three heads folded into one; nothing sees an out-of-scope row before
the test. The threshold keeps 95 % of in-scope validation rows: of the best logit, as the router does, and of the best
probability, for comparison. Beside it, scikit-learn's logistic regression on the same embeddings under the same two
rules. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.config import home_dir
from mlx_router.encoder.encoder import load_encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.head.calibration import fit_calibration
from mlx_router.training import metrics
from mlx_router.training.blend import fit_blend
from mlx_router.training.embeddings import EmbeddingCache
from mlx_router.training.fit import Example, Recipe, fit_head, row_weights
from mlx_router.training.ridge import count_ngrams, fit_lexical

KEPT = 0.95  # of in-scope validation rows
PARTS = ("train", "val", "test", "oos_test")
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def judge(probabilities: Floats, answers: Indices, valid: Floats, test: Floats, outside: Floats) -> dict[str, float]:
    """Figures from probabilities of in-scope test rows (n, C), and from one number a row that says how known it is.

    Returns shares: accuracy in scope with and without rejection; recall, precision and F1 of "out of scope"; AUROC;
    ECE of the best probability in scope.
    """
    threshold = float(np.quantile(valid, 1 - KEPT))
    right = probabilities.argmax(axis=1) == answers
    caught, lost = int((outside < threshold).sum()), int((test < threshold).sum())
    recall, precision = caught / len(outside), caught / max(caught + lost, 1)
    return {
        "accuracy": float(right.mean()),
        "accuracy_with_rejection": float((right & (test >= threshold)).mean()),
        "oos_recall": recall,
        "oos_precision": precision,
        "oos_f1": 2 * recall * precision / max(recall + precision, 1e-9),
        "auroc": metrics.auroc(test, outside),
        "ece": metrics.expected_calibration_error(probabilities.max(axis=1), right),
        "threshold": threshold,
    }


def both_rules(
    name: str, logits: dict[str, Any], probabilities: dict[str, Any], answers: Indices
) -> dict[str, dict[str, float]]:
    """The figures of one model, rejecting by its best logit and by its best probability."""
    return {
        label: judge(probabilities["test"], answers, *(scores[part].max(axis=1) for part in PARTS[1:]))
        for label, scores in ((name, logits), (f"{name}, by probability", probabilities))
    }


def ours(
    texts: dict[str, list[str]], x: dict[str, npt.NDArray[np.float32]], y: dict[str, Indices], recipe: Recipe
) -> dict[str, dict[str, float]]:
    """The router's recipe: head and n-grams, blended and calibrated on validation rows; and the head alone."""
    classes = int(y["train"].max()) + 1
    hot = {part: np.eye(classes, dtype=np.float32)[y[part]] for part in ("train", "val")}
    examples = {part: Example(x[part], hot[part], row_weights(y[part], classes)) for part in hot}
    truth = metrics.Truth(y["val"], hot["val"] > 0, ("en",) * len(y["val"]))
    head, _ = fit_head(examples["train"], examples["val"], truth, recipe)
    lexical = fit_lexical(count_ngrams(texts["train"]), hot["train"])
    out: dict[str, dict[str, float]] = {}
    for name, words in (("ours", True), ("head alone", False)):
        meaning = {part: head.logits(x[part]) for part in PARTS[1:]}
        said = {part: lexical.scores(texts[part]) * words for part in PARTS[1:]}
        blend = fit_blend(meaning["val"], said["val"], hot["val"] > 0)
        logits = {part: meaning[part] + blend.weight * said[part] for part in PARTS[1:]}
        calibration = fit_calibration(logits["val"], hot["val"] > 0, blend.temperature)
        out |= both_rules(name, logits, {part: calibration(logits[part]) for part in PARTS[1:]}, y["test"])
    return out


def regression(x: dict[str, npt.NDArray[np.float32]], y: dict[str, Indices]) -> dict[str, dict[str, float]]:
    """Multinomial logistic regression, C = 10, on the same embeddings; its own probabilities."""
    linear: Any = importlib.import_module("sklearn.linear_model")
    model = linear.LogisticRegression(C=10.0, max_iter=400).fit(x["train"], y["train"])
    logits = {part: model.decision_function(x[part]) for part in PARTS[1:]}
    return both_rules("logistic regression", logits, {p: model.predict_proba(x[p]) for p in PARTS[1:]}, y["test"])


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="data_full.json of CLINC150")
    parser.add_argument("--home", type=Path, help="where embeddings are cached")
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--loss", default="ce")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--heads", type=int, default=3, help="folded into one")
    parser.add_argument("--seeds", type=int, default=3, help="runs that differ in their seed; the mean is reported")
    given = parser.parse_args()

    raw = json.loads(given.data.read_text(encoding="utf-8"))
    names = sorted({intent for _, intent in raw["train"]})
    texts = {part: [text for text, _ in raw[part]] for part in PARTS}
    y = {part: np.array([names.index(intent) for _, intent in raw[part]]) for part in PARTS[:3]}
    home = given.home or home_dir()
    encoder = load_encoder(find_encoder(), cache=home / "cache" / "onnx")
    everything = [text for part in PARTS for text in texts[part]]
    started = time.perf_counter()
    vectors = EmbeddingCache(home / "cache" / "embeddings", encoder).embed(everything)
    encode_s = time.perf_counter() - started
    x = dict(zip(PARTS, np.split(vectors, np.cumsum([len(texts[part]) for part in PARTS])[:-1]), strict=True))

    runs = []
    for seed in range(42, 42 + given.seeds):
        recipe = Recipe(epochs=given.epochs, loss=given.loss, dropout=given.dropout, seed=seed, heads=given.heads)
        runs.append(ours(texts, x, y, recipe))
    figures = {
        name: {key: float(np.mean([run[name][key] for run in runs])) for key in runs[0][name]} for name in runs[0]
    }
    figures |= regression(x, y)

    keys = list(figures["ours"])
    print(f"{'%':<36}" + "".join(f"{key:>25}" for key in keys))
    for name, row in figures.items():
        print(f"{name:<36}" + "".join(f"{100 * row[key]:>25.2f}" for key in keys))
    print(
        json.dumps(
            {
                "benchmark": "clinc150",
                "n": {part: len(texts[part]) for part in PARTS},
                "seeds": given.seeds,
                "runtime": encoder.runtime.name,
                "encode_s": round(encode_s, 1),
                "recipe": Recipe(epochs=given.epochs, loss=given.loss, dropout=given.dropout).to_json(),
                "figures": {name: {key: round(row[key], 4) for key in keys} for name, row in figures.items()},
            }
        )
    )


if __name__ == "__main__":
    main()

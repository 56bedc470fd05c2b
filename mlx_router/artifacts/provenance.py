"""provenance.json: what a router version is made of and how, as the EU AI Act's Annex IV §1(c) asks.

The field names are those of the original system's record; the values come from what really happened.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from mlx_router import __version__, resources
from mlx_router.files import sha256_file, write_json

WATTS_PER_BUSY_CORE = 8.0
SCHEMA = Path(__file__).with_name("provenance.schema.json")
_SOFTWARE = ("mlx", "mlx-lm", "numpy", "safetensors", "tokenizers", "onnx", "onnxruntime")


class CorpusSource(Protocol):
    """The corpus's files, and the hashes of what was read from them."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def sha256(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Facts of one run of `router train`."""

    corpus: CorpusSource
    corpus_source: str
    corpus_rights: str
    counts: dict[str, Any]
    leaks: int
    recipe: dict[str, Any]
    encoder: Any  # its files, as encoder/weights.py describes them
    runtime: str
    metrics: dict[str, Any]
    laps_s: dict[str, float]
    wall_s: float
    cpu_s: float
    finished: datetime


def build_record(folder: Path, version: str, run: TrainingRun, previous: str | None) -> None:
    """Write provenance.json into a finished draft."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    record = {
        "_doc": "EU AI Act Annex IV §1(c) — model lineage / supply-chain record.",
        "deployment_id": "ailiance/auto",
        "version": version,
        "created_at_utc": run.finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "created_on_host": host(),
        "served_via": "in-process MLP head invoked by the mlx-router gateway (FastAPI, :9300)",
        "source": {
            "provider": "head trained by the operator of this machine; encoder by Microsoft / sentence-transformers",
            "encoder": _encoder(run.encoder.model_sha256, run.encoder.tokenizer_sha256, run.encoder.source, meta),
            "head": {
                "checkpoint": f"router/{version}/router.safetensors",
                "previous_checkpoint": f"router/{previous}/router.safetensors (rollback)" if previous else None,
                "training_script": "scripts/train_router.py (mlx-router router train)",
                "training_data_script": _data_script(run.corpus),
            },
        },
        "weights_file": weights_file(folder),
        "architecture": architecture(meta),
        "training_data": {
            "source": run.corpus_source,
            "files": [
                {"name": path.name, "sha256": digest}
                for path, digest in zip(run.corpus.files, run.corpus.sha256, strict=True)
            ],
            "counts": run.counts,
            "split": f"80/10/10, stratified by label, near-duplicates kept together, seed {run.recipe['seed']}",
            "leakage_check": {
                "method": "embedding cosine >= 0.95, or >= 0.7 with a character 4-gram Jaccard >= 0.55",
                "pairs_across_splits": run.leaks,
            },
            "language_mix": _language_mix(run.counts),
            "copyright_status": run.corpus_rights,
        },
        "training_method": {
            "optimizer": f"AdamW lr={run.recipe['learning_rate']}, cosine decay",
            **run.recipe,
            "lexical_model": "ridge regression on n-grams; measured without the test rows, served with them",
            "encoder_runtime": run.runtime,
            "hardware": hardware(),
            "wall_clock_s": run.wall_s,
            "wall_clock_parts_s": run.laps_s,
            "energy_estimate_wh": round(run.cpu_s * WATTS_PER_BUSY_CORE / 3600, 3),
            "energy_method": f"CPU seconds of the process ({run.cpu_s}) x {WATTS_PER_BUSY_CORE} W per busy core",
            "metrics_final": _headline(run.metrics),
        },
        "modifications_post_download": [
            "Encoder used unchanged from sentence-transformers/all-MiniLM-L6-v2",
            "Classifier head trained from scratch on the corpus",
        ],
        "intended_use": f"Domain routing only: classifies a prompt into one of {meta['num_domains']} domains and "
        "forwards the request to the adapter, upstream or base model of that domain.",
        "out_of_scope": [
            "Standalone classification of safety-critical text (e.g. medical triage)",
            "Content moderation",
            "Languages beyond those of the corpus",
        ],
        "software": software(),
        "git_commit": git_commit(),
    }
    write_json(folder / "provenance.json", record)


def imported_record(folder: Path, version: str, origin: Path, previous: str | None, when: datetime) -> None:
    """Write provenance.json for a checkpoint of the original system: what is known, and that the rest is not."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    record = {
        "_doc": "EU AI Act Annex IV §1(c) — model lineage / supply-chain record.",
        "deployment_id": "ailiance/auto",
        "version": version,
        "created_at_utc": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "created_on_host": host(),
        "served_via": "in-process MLP head invoked by the mlx-router gateway (FastAPI, :9300)",
        "source": {
            "provider": "imported checkpoint; its training is not known to this system",
            "encoder": _encoder(None, None, "named by the checkpoint", meta),
            "head": {
                "checkpoint": f"router/{version}/router.safetensors",
                "previous_checkpoint": f"router/{previous}/router.safetensors (rollback)" if previous else None,
                "imported_from": origin.name,
            },
        },
        "weights_file": weights_file(folder),
        "architecture": architecture(meta),
        "training_data": {"source": "unknown: imported"},
        "training_method": {key: meta["training"][key] for key in sorted(meta["training"])},
        "modifications_post_download": ["none: tensors are stored as they came"],
        "intended_use": f"Domain routing only, over {meta['num_domains']} domains.",
        "out_of_scope": ["Anything requiring calibrated probabilities: the imported head is not calibrated"],
        "software": software(),
        "git_commit": git_commit(),
    }
    write_json(folder / "provenance.json", record)


def weights_file(folder: Path) -> dict[str, Any]:
    """Name, size and hash of the head's file."""
    path = folder / "router.safetensors"
    files = {"filename": path.name, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
    others = [
        {"filename": other.name, "size_bytes": other.stat().st_size, "sha256": sha256_file(other)}
        for other in sorted(folder.iterdir())
        if other.suffix in (".json", ".md", ".png", ".safetensors") and other.name not in (path.name, "provenance.json")
    ]
    return {**files, "other_files": others}


def architecture(meta: dict[str, Any]) -> dict[str, Any]:
    """Sizes of encoder and head."""
    hidden, classes, dim = meta["hidden_dim"], meta["num_domains"], meta["embedding_dim"]
    return {
        "family": "Encoder + classifier head",
        "encoder_kind": "BERT-style sentence transformer (MiniLM L6 v2, 384d)",
        "head_kind": "2-layer MLP (Linear → GELU → Dropout → Linear)",
        "head_hidden_dim": hidden,
        "num_domains": classes,
        "head_parameters": (dim + 1) * hidden + (hidden + 1) * classes,
    }


def hardware() -> str:
    """Machine and cores, in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {platform.processor() or 'CPU'}"


def host() -> str:
    """Kind of host, without its name: a record may leave the house."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def software() -> dict[str, str]:
    """Versions of everything that touched the numbers."""
    versions = {"mlx-router": __version__, "python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the checkout that runs, with "-dirty" where it was changed; None for an installed package.

    A project that merely holds the environment that we are installed in is not asked.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def _encoder(model: str | None, tokenizer: str | None, source: str, meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "huggingface_repo": meta["embedding_model"],
        "huggingface_url": f"https://huggingface.co/{meta['embedding_model']}",
        "license_spdx": "apache-2.0",
        "embedding_dim": meta["embedding_dim"],
        "parameters": 22_713_216,
        "model_sha256": model,
        "tokenizer_sha256": tokenizer,
        "obtained_from": source,
    }


def _data_script(corpus: CorpusSource) -> str | None:
    """What made the corpus: known of the shipped one alone."""
    if corpus.files[0].parent != resources.corpus_dir():
        return None
    return "scripts/build_router_data.py + scripts/augment_router_data.py"


def _language_mix(counts: dict[str, Any]) -> str:
    """Shares of the corpus, most first: "en 47 %, fr 45 %"."""
    total: dict[str, int] = {}
    for langs in counts["per_label_and_language"].values():
        for lang, rows in langs.items():
            total[lang] = total.get(lang, 0) + rows
    ordered = sorted(total.items(), key=lambda item: -item[1])
    return ", ".join(f"{lang} {100 * rows / counts['rows']:.0f} %" for lang, rows in ordered)


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    test = metrics["test"]
    return {
        "test_set_size": test["n"],
        "top1_accuracy": test["top1"],
        "top3_accuracy": test["top3"],
        "macro_f1": test["macro_f1"],
        "weighted_f1": test["weighted_f1"],
        "ece": test["ece"],
        "by_language": {lang: {"n": m["n"], "top1": m["top1"]} for lang, m in test["by_language"].items()},
        "rejection": metrics["rejection"],
    }

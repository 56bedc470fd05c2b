"""The record of a version: of what was really read, and of the program that really ran."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_router import resources
from mlx_router.artifacts.meta import Meta
from mlx_router.artifacts.provenance import TrainingRun, build_record
from mlx_router.files import write_json
from mlx_router.training.corpus import Corpus, read_corpus
from tests.gateway_rig import ROOT
from tests.small_corpus import write_small_corpus


def record(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """What a run on this corpus would leave behind."""
    folder.mkdir()
    (folder / "router.safetensors").write_bytes(b"weights")
    meta = Meta(embedding_model="all-MiniLM-L6-v2", embedding_dim=384, hidden_dim=2, domains=corpus.labels)
    write_json(folder / "meta.json", meta.to_json())
    test = {"n": 1, "top1": 1.0, "top3": 1.0, "macro_f1": 1.0, "weighted_f1": 1.0, "ece": 0.0, "by_language": {}}
    run = TrainingRun(
        corpus=corpus,
        corpus_source="a test",
        corpus_rights="none",
        counts={"rows": 1, "per_label_and_language": {"a": {"en": 1}}},
        leaks=0,
        recipe={"seed": 1, "loss": "bce", "learning_rate": 0.1},
        encoder=SimpleNamespace(model_sha256="a", tokenizer_sha256="b", source="path"),
        runtime="onnx",
        metrics={"test": test, "rejection": {}},
        laps_s={},
        wall_s=1.0,
        cpu_s=1.0,
        finished=datetime.now(UTC),
    )
    build_record(folder, "v0001", run, None)
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return found


def test_a_file_that_is_changed_during_the_run_is_recorded_as_it_was_read(tmp_path: Path) -> None:
    folder = write_small_corpus(tmp_path / "corpus", rows=10)
    was = hashlib.sha256((folder / "rust.jsonl").read_bytes()).hexdigest()
    corpus = read_corpus(folder)
    (folder / "rust.jsonl").write_text("")
    (folder / "sql.jsonl").unlink()
    files = {item["name"]: item["sha256"] for item in record(tmp_path / "v", corpus)["training_data"]["files"]}
    assert files["rust.jsonl"] == was
    assert "sql.jsonl" in files


def test_our_scripts_made_the_shipped_corpus_alone(tmp_path: Path) -> None:
    mine = read_corpus(write_small_corpus(tmp_path / "corpus", rows=10))
    assert record(tmp_path / "mine", mine)["source"]["head"]["training_data_script"] is None
    shipped = read_corpus(resources.corpus_dir())
    script = record(tmp_path / "shipped", shipped)["source"]["head"]["training_data_script"]
    assert "augment_router_data.py" in script


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_is_that_of_this_program(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    def commit(parent: Path) -> str:
        code = "import mlx_router.artifacts.provenance as p; print(p.__file__, p.git_commit())"
        environment = {"PYTHONPATH": str(parent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, check=True
        )
        where, _, found = done.stdout.strip().rpartition(" ")
        assert where.startswith(str(parent))
        return found

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody's project")
    site = tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "mlx_router", site / "mlx_router", ignore=shutil.ignore_patterns("__pycache__"))
    assert commit(site) == "None"
    (site / "mlx_router").rename(tmp_path / "mlx_router")
    assert len(commit(tmp_path).removesuffix("-dirty")) == 40

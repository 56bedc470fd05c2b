"""The router as its users meet it: real processes, real training, a home of its own."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_router import Router
from mlx_router.artifacts.provenance import SCHEMA
from mlx_router.config import EncoderConfig
from mlx_router.errors import VersionCorrupt
from tests.small_corpus import LABELS, copy_tree, write_small_corpus

BOARD = "Comment router une paire différentielle USB dans KiCad ?"


def run(home: Path, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_router", "--home", str(home), *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    done = run(home, "router", "train", "--data", str(corpus), "--epochs", "8")
    assert done.returncode == 0, done.stderr
    assert "v0001 is active" in done.stdout
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return copy_tree(trained, tmp_path / "home")


def test_version_holds_what_is_documented(trained: Path) -> None:
    folder = trained / "router" / "v0001"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "router.safetensors",
        "meta.json",
        "label_map.json",
        "metrics.json",
        "provenance.json",
        "report.md",
    }
    assert names >= {"confusion.png", "reliability.png", "domains.png"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["domains"] == sorted(LABELS)
    assert meta["label_map"] == json.loads((folder / "label_map.json").read_text())


def test_provenance_fits_its_schema(trained: Path) -> None:
    record = json.loads(run(trained, "router", "provenance").stdout)
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    weights = trained / "router" / "v0001" / "router.safetensors"
    assert record["weights_file"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    del record["training_data"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, json.loads(SCHEMA.read_text()))


def test_training_twice_gives_one_digest(home: Path, corpus: Path) -> None:
    assert run(home, "router", "train", "--data", str(corpus), "--epochs", "8").returncode == 0
    for name in ("router.safetensors", "lexical.safetensors"):
        first, second = ((home / "router" / version / name).read_bytes() for version in ("v0001", "v0002"))
        assert first == second


def test_route_prints_a_decision(trained: Path) -> None:
    done = run(trained, "route", "--json", BOARD)
    decision = json.loads(done.stdout)
    assert decision["domain"] == "kicad-pcb"
    assert decision["reason"] == "classified"
    assert decision["scores"][0] == ["kicad-pcb", decision["score"]]
    assert "kicad-pcb" in run(trained, "route", BOARD).stdout


def test_the_target_comes_from_manifests_and_routes_without_a_server(trained: Path, tmp_path: Path) -> None:
    def decided(text: str) -> dict[str, Any]:
        config = tmp_path / "mlx-router.toml"
        config.write_text(text)
        done = run(trained, "--config", str(config), "route", "--json", BOARD)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        lines = run(trained, "--config", str(config), "route", "--jsonl", "-", stdin=json.dumps({"text": BOARD}))
        assert json.loads(lines.stdout)["target"] == found["target"]
        return found

    specialist = '[[specialist]]\nname = "hardware"\nport = 1\n'
    assert json.loads(run(trained, "route", "--json", BOARD).stdout)["target"] == {
        "specialist": "hardware",
        "adapter": "mascarade-kicad",
    }
    assert decided(specialist)["target"] == {"specialist": "hardware", "adapter": "mascarade-kicad"}
    routed = decided(specialist + '[routes]\nkicad-pcb = "base"\n')
    assert (routed["domain"], routed["target"]) == ("kicad-pcb", {"specialist": "hardware", "adapter": None})
    upstream = '[[upstream]]\nname = "big"\nurl = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
    least = ", ".join(f"{label} = 1.0" for label in LABELS)
    held = decided(f'{specialist}{upstream}[policy]\nfallback = "big"\nmin_score = {{ {least} }}\n')
    assert (held["domain"], held["reason"]) == ("general", "below_threshold")
    assert held["target"] == {"specialist": "big", "adapter": None}
    assert decided("")["target"] is None
    elsewhere = decided('[[specialist]]\nname = "other"\nport = 1\nadapters = ["mascarade-sql"]\n')
    assert (elsewhere["reason"], elsewhere["target"]) == ("unavailable", {"specialist": "other", "adapter": None})


def test_routes_that_lead_nowhere_do_not_keep_route_from_deciding(trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "mlx-router.toml"
    config.write_text('[[specialist]]\nname = "hardware"\nport = 1\n[routes]\nkicad-pcb = "kikad"\n')
    done = run(trained, "--config", str(config), "route", "--json", BOARD)
    assert done.returncode == 0
    decision = json.loads(done.stdout)
    assert (decision["domain"], decision["target"]) == ("kicad-pcb", None)
    assert "routes.kicad-pcb = 'kikad' is no adapter" in done.stderr


def test_a_thousand_lines_keep_their_order(trained: Path) -> None:
    texts = [
        f"{'SELECT a FROM t WHERE id = ' if i % 3 else 'borrow checker: value moved at line '}{i}" for i in range(1000)
    ]
    done = run(trained, "route", "--jsonl", "-", stdin="\n".join(json.dumps({"text": text}) for text in texts))
    assert done.returncode == 0, done.stderr
    domains = [json.loads(line)["domain"] for line in done.stdout.splitlines()]
    assert len(domains) == 1000
    alone = Router.load(trained).route_many(texts[::97])
    assert domains[::97] == [decision.domain for decision in alone]
    assert len(set(domains)) > 1


@pytest.mark.parametrize(
    ("line", "problem"), [("{", "line 2: not JSON"), ('{"prompt": "x"}', 'line 2: expected {"text"')]
)
def test_a_bad_line_is_named(trained: Path, line: str, problem: str) -> None:
    done = run(trained, "route", "--jsonl", "-", stdin=f'{{"text": "fine"}}\n{line}\n')
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("prompt", ["", "   ", "😀" * 300, "a" * 1_000_000, "\x00\x01"])
def test_odd_prompts_have_a_decision(trained: Path, prompt: str) -> None:
    decision = Router.load(trained).route(prompt)
    assert decision.domain in LABELS
    assert np.isfinite(decision.score)


def test_both_runtimes_decide_alike(trained: Path) -> None:
    texts = [BOARD, "why is the value moved here", "left join returns too many rows", "recette de crêpes"]
    for prompt, answer in zip(
        texts, zip(*(_domains(trained, kind, texts) for kind in ("mlx", "onnx")), strict=True), strict=True
    ):
        assert answer[0] == answer[1], prompt


def _domains(home: Path, runtime: str, texts: list[str]) -> list[str]:
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    done = run(home, "route", "--runtime", runtime, "--jsonl", "-", stdin=lines)
    return [json.loads(line)["domain"] for line in done.stdout.splitlines()]


def test_a_tampered_version_gives_way_to_the_one_before(home: Path, corpus: Path) -> None:
    run(home, "router", "train", "--data", str(corpus), "--epochs", "1")
    weights = home / "router" / "v0002" / "router.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = run(home, "route", "--json", BOARD)
    assert json.loads(done.stdout)["router"] == "v0001"
    assert "router.safetensors" in done.stderr
    verify = run(home, "router", "verify")
    assert verify.returncode == 1
    assert "router.safetensors" in verify.stderr


def test_rollback_and_activate(home: Path, corpus: Path) -> None:
    run(home, "router", "train", "--data", str(corpus), "--epochs", "1")
    assert "v0001 is active (was v0002)" in run(home, "router", "rollback").stdout
    assert "v0002 is active" in run(home, "router", "activate", "v0002").stdout
    listed = json.loads(run(home, "router", "list", "--json").stdout)
    assert [(row["version"], row["active"]) for row in listed] == [("v0001", False), ("v0002", True)]


@pytest.mark.parametrize(("hidden", "classes"), [(512, 35), (64, 3)])
def test_a_checkpoint_of_the_original_system_loads(home: Path, tmp_path: Path, hidden: int, classes: int) -> None:
    origin = _original_checkpoint(tmp_path / "original", hidden, classes)
    done = run(home, "router", "import", str(origin), "--activate")
    assert done.returncode == 0, done.stderr
    decision = Router.load(home).route("anything")
    assert len(Router.load(home).labels) == classes
    assert decision.router == "v0002"
    assert run(home, "router", "verify").returncode == 0
    (origin / "label_map.json").write_text("{}")
    refused = run(home, "router", "import", str(origin))
    assert refused.returncode == 1
    assert "label_map.json: the label map does not follow" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"embedding_model": "intfloat/e5-small"}, "made for the encoder 'intfloat/e5-small'"),
        ({"embedding_model": None}, "embedding_model must be a name"),
        ({"embedding_dim": 768}, "made for embeddings of 768 numbers"),
    ],
)
def test_a_checkpoint_for_another_encoder_is_refused(
    home: Path, tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    origin = _original_checkpoint(tmp_path / "original", 64, 3)
    meta = json.loads((origin / "meta.json").read_text()) | changes
    (origin / "meta.json").write_text(json.dumps(meta))
    refused = run(home, "router", "import", str(origin))
    assert refused.returncode == 1
    assert problem in refused.stderr
    assert not (home / "router" / "v0002").exists()
    with pytest.raises(VersionCorrupt, match=problem):
        Router.from_folder(origin, "v0002", home, EncoderConfig())


def _original_checkpoint(folder: Path, hidden: int, classes: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (hidden, 384), "0.bias": (hidden,), "3.weight": (classes, hidden), "3.bias": (classes,)}
    save_file(
        {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}, folder / "router.safetensors"
    )
    domains = [f"domain-{i:02d}" for i in range(classes)]
    mapping = {name: i for i, name in enumerate(domains)}
    meta = {
        "embedding_model": "sentence-transformers/all-MiniLM-L6-v2",
        "embedding_dim": 384,
        "hidden_dim": hidden,
        "num_domains": classes,
        "domains": domains,
        "label_map": mapping,
        "loss": "BCEWithLogitsLoss (multi-label friendly)",
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "label_map.json").write_text(json.dumps(mapping))
    return folder


def test_our_version_has_the_shape_of_the_original(trained: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(trained / "router" / "v0001" / "router.safetensors")
    assert {key: value.shape for key, value in tensors.items()} == {
        "0.weight": (256, 384),
        "0.bias": (256,),
        "3.weight": (len(LABELS), 256),
        "3.bias": (len(LABELS),),
    }


def test_an_interrupt_leaves_no_version(tmp_path: Path, corpus: Path) -> None:
    command = [sys.executable, "-m", "mlx_router", "--home", str(tmp_path), "router", "train", "--data", str(corpus)]
    with subprocess.Popen([*command, "--epochs", "100000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        cache = tmp_path / "cache" / "embeddings"
        while not (cache.is_dir() and any(cache.glob("*-onnx.npz"))):
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.05)
                pytest.fail(f"training ended by itself with {child.returncode}")
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode == 1
    assert not (tmp_path / "router").exists() or list((tmp_path / "router").iterdir()) == []


def test_evaluation_of_a_file(trained: Path, tmp_path: Path) -> None:
    rows = [{"text": BOARD, "label": "kicad-pcb", "also": ["sql"], "lang": "fr"}, {"text": "x", "label": "cobol"}]
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n")
    figures = json.loads(run(trained, "router", "eval", "--data", str(path), "--json").stdout)
    assert figures["top1"] == 1.0
    assert figures["by_language"]["fr"]["n"] == 1
    path.write_text("\n".join(map(json.dumps, [*rows, rows[1]])))
    refused = run(trained, "router", "eval", "--data", str(path))
    assert refused.returncode == 1
    assert "eval.jsonl:2: unknown label 'cobol', in 2 rows" in " ".join(refused.stderr.split())


def test_no_version_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path, "route", "hello")
    assert done.returncode == 1
    assert "mlx-router router train" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [("route", "a", "--jsonl", "-"), ("route", "--top", "0", "x"), ("router", "nope")])
def test_wrong_usage_exits_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run(tmp_path, *words, stdin="").returncode == 2

"""Which way imports run: the table of the architecture document, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mlx_router"
SHARED = {"errors", "files", "resources", "__version__"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "resources": set(),
    "config": set(),
    "compute": set(),
    "protocol": set(),
    "http": set(),
    "artifacts": {"config"},
    "encoder": {"compute", "config"},
    "lora": {"compute", "config"},
    "head": {"compute", "config", "encoder", "artifacts"},
    "training": {"compute", "config", "encoder", "head", "artifacts"},
    "gateway": {"config", "protocol", "http", "artifacts", "head", "lora"},
    "specialist": {"compute", "config", "protocol", "http", "lora"},
    "supervisor": {"config", "http"},
}
WITHOUT_MLX = (
    "mlx_router.config",
    "mlx_router.protocol",
    "mlx_router.artifacts.store",
    "mlx_router.artifacts.provenance",
    "mlx_router.supervisor",
    "mlx_router.head.decision",
    "mlx_router.head.router",
    "mlx_router.lora.manifest",
    "mlx_router.lora.registry",
    "mlx_router.gateway.upstreams",
    "mlx_router.gateway.policy",
    "mlx_router.cli",
)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_layer_imports_only_what_lies_below(layer: str) -> None:
    folder = PACKAGE / layer
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{layer}.py"]
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in sorted(_imports(path))
        if name.startswith("mlx_router.") and name.split(".")[1] not in ALLOWED[layer] | SHARED | {layer}
    ]
    assert wrong == []


def test_only_compute_imports_mlx() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in sorted(_imports(path))
        if path.name != "compute.py" and name.split(".")[0] == "mlx"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    [
        "training.fit",
        "head.mlp",
        "encoder.mlx_runtime",
        "lora.bank",
        "lora.validate",
        "lora.train",
        "lora.demo_base",
        "specialist.core",
        "specialist.generation",
        "specialist.loading",
    ],
)
def test_the_blas_is_there_before_mlx(module: str) -> None:
    """mlx binds its BLAS when it is loaded: a module that imports mlx or mlx_lm first makes everything slow."""
    code = f"import mlx_router.{module}, mlx_router.compute as c; print(c.LATE)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_mlx_is_not_imported_where_it_is_not_needed() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_MLX!r}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm', 'onnxruntime', 'scipy')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

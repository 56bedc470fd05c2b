"""From a cold process: the first decision, and what a gateway with a loaded router keeps in memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.gateway_rig import ROOT, free_port, http
from tests.small_corpus import write_small_corpus
from tests.waiting import wait_until

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the figures are those of Linux hosts")

FIRST_DECISION_S = 1.5  # of CPU time on all cores together, which is above the wall time of a machine at rest
GATEWAY_BYTES = 300e6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a trained version and a graph that was built before."""
    folder = tmp_path_factory.mktemp("home")
    corpus = write_small_corpus(tmp_path_factory.mktemp("corpus"))
    command = [sys.executable, "-m", "mlx_router", "--home", str(folder)]
    subprocess.run(
        [*command, "router", "train", "--data", str(corpus), "--epochs", "4"], check=True, capture_output=True, cwd=ROOT
    )
    return folder


def test_first_decision(home: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(
        [sys.executable, "-m", "mlx_router", "--home", str(home), "route", "--json", "a borrow checker error"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(said.stdout)["domain"]
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < FIRST_DECISION_S


def test_route_imports_nothing_it_does_not_need(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlx_router import Router\n"
        "Router.load(Path(sys.argv[1])).route('hello')\n"
        "print([name for name in ('mlx', 'mlx_lm', 'onnx', 'scipy', 'torch', 'rich') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code, str(home)], check=True, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def test_gateway_memory(home: Path, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "mlx-router.toml"
    config.write_text(f'[gateway]\nhost = "127.0.0.1"\nport = {port}\n', encoding="utf-8")
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_router", "gateway", "--config", str(config), "--home", str(home)],
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
    try:
        wait_until(lambda: _routes(url), "the gateway routes", patience_s=60)
        for words in (3, 40, 400):  # short, typical, a full window
            assert http(f"{url}/v1/route", {"prompt": "solder mask " * words}).status == 200
        memory = psutil.Process(process.pid)
        mapped = {Path(region.path).name for region in memory.memory_maps()}
        assert memory.memory_info().rss < GATEWAY_BYTES
        assert not [name for name in mapped if name.startswith("libmlx")]
        assert [name for name in mapped if name.startswith("onnxruntime_pybind")]  # the list can hold such names
    finally:
        process.terminate()
        process.wait(timeout=30)


def _routes(url: str) -> bool:
    try:
        return http(f"{url}/v1/route", {"prompt": "hello"}).status == 200
    except OSError:
        return False

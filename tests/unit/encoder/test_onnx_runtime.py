"""The ONNX runtime's graph on disk, its threads, and 1,000 arbitrary inputs against MLX."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mlx_router.encoder import onnx_runtime
from mlx_router.encoder.encoder import Encoder, load_encoder
from mlx_router.encoder.onnx_runtime import DIGESTS, GRAPH, WEIGHTS, OnnxRuntime
from mlx_router.encoder.weights import EncoderFiles, find_encoder

TOLERANCE = 1e-5  # float32 sums in another order; measured 4e-7
TEXTS = ["Comment router une paire différentielle USB ?", "cargo rebuilds everything", ""]


@pytest.fixture(scope="module")
def files() -> EncoderFiles:
    return find_encoder()


@pytest.fixture(scope="module")
def cache(files: EncoderFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    OnnxRuntime(files, threads=1, cache=folder)
    return folder


@pytest.fixture(scope="module")
def encoder(files: EncoderFiles, cache: Path) -> Encoder:
    return load_encoder(files, runtime="onnx", threads=1, cache=cache)


def test_graph_is_built_once(files: EncoderFiles, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Path, folder: Path) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(onnx_runtime, "_write_graph", fail)
    OnnxRuntime(files, threads=1, cache=cache)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, DIGESTS])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damaged_graph_is_built_again(
    files: EncoderFiles, encoder: Encoder, tmp_path: Path, cache: Path, name: str, damage: str
) -> None:
    (folder,) = cache.iterdir()
    copy = tmp_path / folder.name
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).unlink()
    if damage != "gone":
        (copy / name).write_bytes(data if damage == "changed" else data[: len(data) // 2])
    again = load_encoder(files, runtime="onnx", threads=1, cache=tmp_path)
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert (copy / name).read_bytes() == (folder / name).read_bytes()


def test_cache_and_memory_give_the_same_vectors(files: EncoderFiles, encoder: Encoder) -> None:
    assert np.array_equal(load_encoder(files, runtime="onnx", threads=1).encode(TEXTS), encoder.encode(TEXTS))


def test_a_cache_that_cannot_be_written_is_done_without(files: EncoderFiles, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    without = load_encoder(files, runtime="onnx", threads=1, cache=tmp_path / "home" / "onnx")
    assert np.array_equal(without.encode(TEXTS), encoder.encode(TEXTS))


def test_a_full_disk_does_not_keep_anybody_from_encoding(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from mlx_router.encoder.weights import find_encoder\n"
        "from mlx_router.encoder.encoder import load_encoder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "print(load_encoder(find_encoder(), runtime='onnx', threads=1, cache=Path(sys.argv[1])).encode(['x']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 384)\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_builders_at_once(files: EncoderFiles, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mlx_router.encoder.weights import find_encoder\n"
        "from mlx_router.encoder.encoder import load_encoder\n"
        "print(load_encoder(find_encoder(), runtime='onnx', threads=1, cache=Path(sys.argv[1])).encode(['x'])[0, 0])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_is_the_configured_one(files: EncoderFiles, cache: Path, threads: int) -> None:
    before = threading.active_count(), _native_threads()
    runtime = OnnxRuntime(files, threads=threads, cache=cache)
    assert _native_threads() - before[1] == threads - 1  # the caller is one of them
    assert runtime(np.array([[101, 102]], dtype=np.int32), np.array([2], dtype=np.int32)).shape == (1, 384)


def _native_threads() -> int:
    import psutil

    return psutil.Process().num_threads()


def test_runtimes_agree_on_1000_arbitrary_inputs(files: EncoderFiles, encoder: Encoder) -> None:
    rng = random.Random(20)
    texts = [_arbitrary(rng) for _ in range(1000)]
    mlx = load_encoder(files, runtime="mlx")
    assert np.abs(mlx.encode(texts) - encoder.encode(texts)).max() <= TOLERANCE


def _arbitrary(rng: random.Random) -> str:
    """Letters, code points of any plane, lone surrogates, blanks; mostly short, a few beyond 40 tokens."""
    size = int(rng.expovariate(1 / 7))
    kinds = (
        lambda: rng.choice("etaoin shrdlu éàç"),
        lambda: rng.choice("{}()[];:=<>/\\'\"\n\t 0123456789"),
        lambda: chr(rng.randrange(0x20, 0x3000)),
        lambda: chr(rng.randrange(0x110000)),
    )
    kind = rng.choice(kinds)
    return "".join(kind() if rng.random() < 0.9 else rng.choice(kinds)() for _ in range(size))

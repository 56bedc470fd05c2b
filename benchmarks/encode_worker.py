"""One contender of benchmarks/encode.py in a process of its own: `python encode_worker.py KIND MODEL_DIR THREADS`.

Runs under any Python that has what the contender needs; onnx and mlx need mlx_router, export and torch need torch.
Reads one JSON request a line on standard input, {"batches": [[[id, …], …], …], "repeat": n, "vectors": bool}, and
answers with one line: wall and CPU milliseconds of each pass over the batches, and the vectors if asked for.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Run = Callable[[Ids, Ids], npt.NDArray[np.float32]]  # ids (B, T), lengths (B,) -> (B, 384)
WARM_UP = 2
GRAPH = "export.onnx"


def contender(kind: str, model: Path, threads: int, work: Path) -> tuple[Run, dict[str, str]]:
    """The function to time, and the versions behind it."""
    makers = {"onnx": _ours, "mlx": _ours, "export": _export, "torch": _torch}
    return makers[kind](kind, model, threads, work)


def _ours(kind: str, model: Path, threads: int, work: Path) -> tuple[Run, dict[str, str]]:
    from mlx_router.encoder.encoder import load_encoder
    from mlx_router.encoder.weights import find_encoder

    runtime = load_encoder(find_encoder(model), runtime=kind, threads=threads, cache=work / "graphs").runtime
    return runtime, _versions({"onnx": "onnxruntime", "mlx": "mlx"}[kind])


def _export(kind: str, model: Path, threads: int, work: Path) -> tuple[Run, dict[str, str]]:
    """ONNX Runtime on torch's export, fused by ONNX Runtime's own transformer optimiser; same session options."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(work / GRAPH), options, providers=["CPUExecutionProvider"])

    def run(ids: Ids, lengths: Ids) -> npt.NDArray[np.float32]:
        mask = (np.arange(ids.shape[1])[None, :] < lengths[:, None]).astype(np.int64)
        out: npt.NDArray[np.float32] = session.run(None, {"ids": ids.astype(np.int64), "mask": mask})[0]
        return out

    return run, _versions("onnxruntime")


def _torch(kind: str, model: Path, threads: int, work: Path) -> tuple[Run, dict[str, str]]:
    """sentence-transformers' own modules on token ids, without its tokenizer and its Python around batches."""
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("sentence_transformers")
    torch.set_num_threads(threads)
    encoder = library.SentenceTransformer(str(model), device="cpu").eval()

    def run(ids: Ids, lengths: Ids) -> npt.NDArray[np.float32]:
        mask = torch.from_numpy((np.arange(ids.shape[1])[None, :] < lengths[:, None]).astype(np.int64))
        features = {"input_ids": torch.from_numpy(ids.astype(np.int64)), "attention_mask": mask}
        with torch.inference_mode():
            out: npt.NDArray[np.float32] = encoder(features)["sentence_embedding"].numpy()
        return out

    return run, _versions("torch", "sentence-transformers", "transformers")


def make_export(model: Path, target: Path) -> None:
    """Export MiniLM with masked mean and L2 norm from torch, and fuse it."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    optimizer: Any = importlib.import_module("onnxruntime.transformers.optimizer")
    bert = transformers.AutoModel.from_pretrained(str(model), attn_implementation="eager").eval()

    class Pooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = self.bert(input_ids=ids, attention_mask=mask)[0]
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1)

    ids = torch.randint(5, 2000, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    raw = target.with_suffix(".raw.onnx")
    torch.onnx.export(
        Pooled().eval(),
        (ids, mask),
        str(raw),
        input_names=["ids", "mask"],
        output_names=["pooled"],
        dynamic_axes={name: {0: "B", 1: "T"} for name in ("ids", "mask")},
        opset_version=17,
        dynamo=False,  # the optimiser knows the patterns of this exporter
    )
    fused = optimizer.optimize_model(str(raw), model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
    counts = fused.get_fused_operator_statistics()
    if counts["Attention"] != 6 or counts["SkipLayerNormalization"] != 12 or counts["BiasGelu"] != 6:
        raise SystemExit(f"the exported graph was not fused: {counts}")
    fused.save_model_to_file(str(target))
    raw.unlink()


def _versions(*names: str) -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in names}


def pad(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Right-pad with 0: -> ids (B, T), lengths (B,)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths


def answer(run: Run, request: dict[str, Any]) -> dict[str, Any]:
    """Time one request."""
    batches = [pad(rows) for rows in request["batches"]]
    for ids, lengths in batches[:WARM_UP] * (WARM_UP if len(batches) == 1 else 1):
        run(ids, lengths)
    wall, cpu = [], []
    for _ in range(request["repeat"]):
        cpu_started, started = time.process_time(), time.perf_counter()
        for ids, lengths in batches:
            run(ids, lengths)
        wall.append((time.perf_counter() - started) * 1e3)
        cpu.append((time.process_time() - cpu_started) * 1e3)
    reply: dict[str, Any] = {"wall_ms": wall, "cpu_ms": cpu}
    if request.get("vectors"):
        reply["vectors"] = np.concatenate([run(*batch) for batch in batches]).tolist()
    return reply


def main() -> None:
    """Answer requests until standard input ends."""
    warnings.simplefilter("ignore")
    kind, model, threads, work = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    if kind == "make-export":
        make_export(model, work / GRAPH)
        return
    run, versions = contender(kind, model, threads, work)
    replies.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps(answer(run, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()

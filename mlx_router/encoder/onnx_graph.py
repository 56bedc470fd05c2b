"""MiniLM's transformer blocks as an ONNX graph of fused operators, built from the same safetensors.

The vocabulary table stays out of the graph: looking rows up in a memory-mapped file costs less than a resident copy
of 47 MB. Operators: com.microsoft Attention (packed QKV, lengths as mask), SkipLayerNormalization, BiasGelu.
Source of the operator contracts: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, DIM, EPS = 6, 12, 384, 1e-12

Tensors = Mapping[str, npt.NDArray[np.float32]]


class _Builder:
    """Collects nodes and initializers; every node has one output named after it."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.NDArray[Any] | None = None) -> str:
        """Register the checkpoint's tensor of that name, or a value made from it."""
        array = self.tensors[name] if value is None else value
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name


def build_graph(tensors: Tensors) -> onnx.ModelProto:
    """Embedded tokens (B, T, 384) before LayerNorm, mask (B, T), lengths (B,) int32 -> pooled (B, 384)."""
    build = _Builder(tensors)
    x = build.node(
        "LayerNormalization",
        [
            "embedded",
            build.constant("embeddings.LayerNorm.weight"),
            build.constant("embeddings.LayerNorm.bias"),
        ],
        "embeddings.out",
        epsilon=EPS,
    )
    for index in range(LAYERS):
        x = _block(build, f"encoder.layer.{index}", x)
    _pool(build, x)
    graph = helper.make_graph(
        build.nodes,
        "MiniLM-L6",
        [
            helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["B", "T", DIM]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", "T"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["B", DIM])],
        build.initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _block(build: _Builder, prefix: str, x: str) -> str:
    """One post-norm transformer block: (B, T, D) -> (B, T, D)."""
    parts = [f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")]
    mixed = build.node(
        "Attention",
        [
            x,
            build.constant(
                f"{prefix}.qkv.weight",
                np.concatenate([build.tensors[f"{p}.weight"].T for p in parts], axis=1),
            ),
            build.constant(f"{prefix}.qkv.bias", np.concatenate([build.tensors[f"{p}.bias"] for p in parts])),
            "lengths",
        ],
        f"{prefix}.mixed",
        domain="com.microsoft",
        num_heads=HEADS,
    )
    x = _add_and_norm(build, f"{prefix}.attention.output", mixed, x)
    wide_key = f"{prefix}.intermediate.dense"
    wide = build.node(
        "MatMul",
        [x, build.constant(f"{wide_key}.weight", build.tensors[f"{wide_key}.weight"].T)],
        f"{wide_key}.out",
    )
    active = build.node(
        "BiasGelu", [wide, build.constant(f"{wide_key}.bias")], f"{prefix}.gelu", domain="com.microsoft"
    )
    return _add_and_norm(build, f"{prefix}.output", active, x)


def _add_and_norm(build: _Builder, prefix: str, x: str, residual: str) -> str:
    key = f"{prefix}.dense"
    projected = build.node(
        "MatMul", [x, build.constant(f"{key}.weight", build.tensors[f"{key}.weight"].T)], f"{key}.out"
    )
    return build.node(
        "SkipLayerNormalization",
        [
            projected,
            residual,
            build.constant(f"{prefix}.LayerNorm.weight"),
            build.constant(f"{prefix}.LayerNorm.bias"),
            build.constant(f"{key}.bias"),
        ],
        f"{prefix}.out",
        domain="com.microsoft",
        epsilon=EPS,
    )


def _pool(build: _Builder, x: str) -> None:
    """Masked mean, as one product (B, 1, T) @ (B, T, D), then the L2 norm; the mean's divisor cancels in the norm."""
    row = build.node("Unsqueeze", ["mask", build.constant("axis1", np.array([1], dtype=np.int64))], "mask.row")
    total = build.node("MatMul", [row, x], "pool.total")
    summed = build.node("Squeeze", [total, "axis1"], "pool.summed")
    build.node("LpNormalization", [summed], "pooled", axis=-1, p=2)

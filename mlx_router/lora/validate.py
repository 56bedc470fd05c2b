"""Does an adapter fit a model? Every mismatch is found before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_router.compute import nn  # before mlx_lm: it loads the BLAS

# isort: split
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

from mlx_router.errors import AdapterIncompatible
from mlx_router.lora.layers import dense_dims
from mlx_router.lora.load import AdapterFiles, LoraPair
from mlx_router.lora.names import by_tail, in_layer, layer_index, tail

DENSE = (nn.Linear, nn.QuantizedLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
SWITCH = (SwitchLinear, QuantizedSwitchLinear)
SWITCH_PARENTS = (SwitchGLU, SwitchMLP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module that an adapter can adapt."""

    path: str
    layer: nn.Module
    kind: str  # "linear", "embedding" or "switch"
    inputs: int
    outputs: int
    experts: int = 0
    parent: str = ""  # of a switch layer: the module that sorts its tokens


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model by its path."""
    return dict(model.named_modules())


def find_targets(model: nn.Module) -> dict[str, Target]:
    """Every module of a model that the bank can adapt, by path."""
    modules = named_modules(model)
    targets = {}
    for path, layer in modules.items():
        if isinstance(layer, SWITCH):
            parent = path.rpartition(".")[0]
            if not isinstance(modules.get(parent), SWITCH_PARENTS):
                continue
            targets[path] = Target(
                path=path,
                layer=layer,
                kind="switch",
                inputs=layer.input_dims,
                outputs=layer.output_dims,
                experts=layer.num_experts,
                parent=parent,
            )
        elif isinstance(layer, DENSE + EMBEDDING):
            inputs, outputs = dense_dims(layer)
            kind = "linear" if isinstance(layer, DENSE) else "embedding"
            targets[path] = Target(path=path, layer=layer, kind=kind, inputs=inputs, outputs=outputs)
    return targets


def match(files: AdapterFiles, targets: Mapping[str, Target], max_rank: int) -> dict[str, LoraPair]:
    """The adapter's matrices by the model's module paths.

    Raises AdapterIncompatible with every module that does not exist, has another shape, or that the adapter's
    own configuration leaves out.
    """
    problems: list[str] = []
    matched: dict[str, LoraPair] = {}
    foreign = files.format == "peft" or "peft" in files.config  # named by transformers, or converted from that
    tails = by_tail(targets) if foreign else {}
    allowed = _configured(files, targets)
    for name, pair in files.modules.items():
        path = name if name in targets else tails.get(tail(name), name)
        target = targets.get(path)
        if target is None:
            problems.append(f"{name}: the base model has no such module that can be adapted")
            continue
        problems += _shape_problems(path, pair, target, max_rank)
        if allowed is not None and path not in allowed:
            problems.append(f"{path}: outside the num_layers and keys of the adapter's own configuration")
        matched[path] = pair
    if problems:
        raise AdapterIncompatible.from_problems(f"adapter {files.name} does not fit the base model", problems)
    return matched


def _configured(files: AdapterFiles, targets: Mapping[str, Target]) -> set[str] | None:
    """Paths that mlx-lm would adapt for this configuration; None for PEFT, whose files alone say it."""
    if files.format == "peft":
        return None
    layer_of = {path: layer_index(path) for path in targets}
    count = 1 + max((index for index in layer_of.values() if index is not None), default=-1)
    first = count - files.num_layers if files.num_layers and files.num_layers > 0 else 0
    keys = None if files.keys is None else set(files.keys)
    if keys is None:
        keys = {in_layer(path) for path, index in layer_of.items() if index is not None}
    return {
        path
        for path, index in layer_of.items()
        if path in keys or (index is not None and index >= first and in_layer(path) in keys)
    }


def _shape_problems(path: str, pair: LoraPair, target: Target, max_rank: int) -> list[str]:
    rank = pair.rank
    a_wanted: tuple[int, ...]
    b_wanted: tuple[int, ...]
    if target.kind == "switch":
        a_wanted, b_wanted = (target.experts, rank, target.inputs), (target.experts, target.outputs, rank)
    else:
        a_wanted, b_wanted = (target.inputs, rank), (rank, target.outputs)
    problems = []
    if rank > max_rank:
        problems.append(f"{path}: rank {rank}, the bank holds at most {max_rank}")
    for leaf, tensor, wanted in (("lora_a", pair.a, a_wanted), ("lora_b", pair.b, b_wanted)):
        if tuple(tensor.shape) != tuple(wanted):
            problems.append(f"{path}.{leaf}: shape {tuple(tensor.shape)}, the base model needs {tuple(wanted)}")
    return problems

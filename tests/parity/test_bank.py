"""A mixed batch of the bank against stock mlx-lm, which loads one adapter at a time.

Tolerance: the bank computes the same products in another order (gathered, padded to the bank's rank, batched), so
float32 log-probabilities differ by rounding, a few 1e-6 here; 1e-4 is allowed. The adapters themselves move them by
whole nats, and the last test shows that a shuffled bank is caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from mlx_router.compute import mx, nn
from mlx_router.lora import bank as bank_module
from mlx_router.lora.bank import AdapterBank
from mlx_router.lora.binding import AdapterVersion
from mlx_router.lora.load import read_adapter
from tests.tiny_models import VOCABULARY, open_model, save_adapter, save_model, save_tokenizer

TOLERANCE = 1e-4  # max |difference of log-probabilities|
NEW_TOKENS = 10

# Per family: targets of three adapters, whose ranks, layer counts and scales differ as well.
TARGETS: dict[str, list[tuple[str, ...] | None]] = {
    "qwen3": [
        ("self_attn.q_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj", "model.embed_tokens"),
        None,
    ],
    "qwen3_moe": [
        ("self_attn.q_proj", "self_attn.k_proj"),
        ("mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj", "mlp.gate", "lm_head"),
        None,
    ],
    "qwen3_5_moe": [
        ("self_attn.q_proj", "linear_attn.in_proj_qkv", "linear_attn.out_proj"),
        ("mlp.switch_mlp.up_proj", "mlp.shared_expert.down_proj", "mlp.shared_expert_gate"),
        None,
    ],
}
SHAPES = [(4, -1, 2.0), (16, 2, 1.0), (8, 3, 2.5)]  # rank, num_layers, scale

# (adapter, prompt length, step at which it joins, step at which it is removed or None)
ROWS: list[tuple[int, int, int, int | None]] = [
    (0, 1, 0, None),
    (1, 200, 0, None),
    (2, 17, 0, 6),
    (3, 2, 0, None),
    (2, 90, 3, None),
    (0, 33, 3, 9),
    (1, 16, 7, None),
    (3, 64, 7, None),
    (2, 5, 12, None),
]


@dataclass(frozen=True)
class Case:
    kind: str
    base: Path
    adapters: list[Path]


@dataclass
class Row:
    adapter: int  # 0 is the base
    prompt: list[int]
    tokens: list[int]
    logprobs: list[np.ndarray]


@pytest.fixture(
    scope="module",
    params=[(kind, bits) for kind in TARGETS for bits in (0, 4)],
    ids=lambda param: f"{param[0]}-{'4bit' if param[1] else 'float32'}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, bits = request.param
    home = tmp_path_factory.mktemp(f"{kind}{bits}")
    base = save_tokenizer(save_model(home / "base", kind, bits=bits))
    adapters = [
        save_adapter(
            home / f"a{number}", base, rank=rank, num_layers=layers, scale=scale, keys=keys, seed=number, strength=0.2
        )
        for number, ((rank, layers, scale), keys) in enumerate(zip(SHAPES, TARGETS[kind], strict=True), start=1)
    ]
    return Case(kind, base, adapters)


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(0, VOCABULARY, length).tolist() for _, length, _, _ in ROWS]


def decode(bank: AdapterBank, versions: list[AdapterVersion | None]) -> list[Row]:
    """Run ROWS through one BatchGenerator, with their joins and removals."""
    generator = BatchGenerator(
        bank.wrapped, max_tokens=NEW_TOKENS, prefill_step_size=16, prefill_batch_size=3, completion_batch_size=6
    )
    rows = [Row(adapter, prompt, [], []) for (adapter, *_), prompt in zip(ROWS, prompts(), strict=True)]
    by_uid: dict[int, Row] = {}
    leases = []
    for step in range(200):
        for (_, _, joins, leaves), row in zip(ROWS, rows, strict=True):
            if joins == step:
                lease = bank.acquire(versions[row.adapter])
                leases.append(lease)
                (uid,) = generator.insert([row.prompt], caches=[bank.make_cache(lease)])
                by_uid[uid] = row
            if leaves == step:
                generator.remove([uid for uid, other in by_uid.items() if other is row])
        _, responses = generator.next()
        for response in responses:
            by_uid[response.uid].tokens.append(response.token)
            by_uid[response.uid].logprobs.append(np.array(response.logprobs))
        if step > max(joins for _, _, joins, _ in ROWS) and all(
            len(row.tokens) == NEW_TOKENS or leaves is not None for row, (*_, leaves) in zip(rows, ROWS, strict=True)
        ):
            break
    for lease in leases:
        lease.release()
    generator.close()
    return rows


def stock(model: nn.Module, row: Row) -> Iterator[tuple[int, np.ndarray]]:
    steps = generate_step(mx.array(row.prompt), model, max_tokens=NEW_TOKENS, prefill_step_size=16)
    for token, logprobs in steps:
        yield int(token), np.array(logprobs)


def distance(case: Case, rows: list[Row]) -> dict[int, float]:
    """For each adapter, max |difference of log-probabilities| to stock; infinite once a greedy token differs."""
    worst: dict[int, float] = {}
    for adapter in sorted({row.adapter for row in rows}):
        path = str(case.adapters[adapter - 1]) if adapter else None
        model, _ = load(str(case.base), adapter_path=path)
        worst[adapter] = 0.0
        for row in rows:
            if row.adapter != adapter:
                continue
            for (token, logprobs), ours, own in zip(stock(model, row), row.tokens, row.logprobs, strict=False):
                worst[adapter] = max(worst[adapter], float(np.abs(logprobs - own).max()))
                if token != ours:
                    worst[adapter] = float("inf")
                    break
    return worst


def make_bank(case: Case) -> tuple[AdapterBank, list[AdapterVersion | None]]:
    bank = AdapterBank(open_model(case.base), slots=4)
    return bank, [None, *(bank.load(read_adapter(path)) for path in case.adapters)]


def test_mixed_batch_equals_stock(case: Case) -> None:
    bank, versions = make_bank(case)
    rows = decode(bank, versions)
    finished = [row for row, (*_, leaves) in zip(rows, ROWS, strict=True) if leaves is None]
    assert all(len(row.tokens) == NEW_TOKENS for row in finished)
    worst = distance(case, rows)
    assert max(worst.values()) <= TOLERANCE, worst


def test_base_rows_alone_are_the_stock_model(case: Case) -> None:
    """With adapters resident but unused, the very same graph is built: the logits are equal to the last bit."""
    bank, _ = make_bank(case)
    tokens = mx.array([prompts()[2], prompts()[2]])
    cache = bank.wrapped.make_cache()
    cache[-1].extend(bank.wrapped.make_cache()[-1])
    ours = bank.wrapped(tokens, cache=cache)
    plain = open_model(case.base)
    assert mx.array_equal(ours, plain(tokens, cache=make_prompt_cache(plain)))


def test_shuffled_slots_break_parity(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    make_plan = bank_module.make_plan
    bank, versions = make_bank(case)
    adapters = [version for version in versions if version is not None]

    def shuffled(rows: tuple[AdapterVersion, ...], *args: Any) -> Any:
        turned = dict(zip(adapters, adapters[1:] + adapters[:1], strict=True))
        moved = [
            replace(row, slot=turned[row].slot, expert_slot=turned[row].expert_slot) if row.slot else row
            for row in rows
        ]
        return make_plan(tuple(moved), *args)

    monkeypatch.setattr(bank_module, "make_plan", shuffled)
    worst = distance(case, decode(bank, versions))
    assert worst[0] <= TOLERANCE  # base rows stay the base whatever happens to their neighbours
    assert all(worst[adapter] > 1000 * TOLERANCE for adapter in (1, 2, 3)), worst

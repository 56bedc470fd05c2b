"""`adapter check`: the gate before traffic. An adapter that is worse than its base is kept out.

Four looks, base against adapter, through the same bank that serves:
files (updates that are zero, or larger than what they update), perplexity on the adapter's own held-out rows,
perplexity on general rows, and short general answers (facts lost, links that nobody asked for).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.compute import mx, nn
from mlx_router.errors import AdapterError
from mlx_router.lora.bank import AdapterBank, Lease
from mlx_router.lora.files import adapter_digest
from mlx_router.lora.load import AdapterFiles, LoraPair, read_adapter
from mlx_router.lora.rows import ChatRow, EncodedRow, encode_rows
from mlx_router.lora.tensors import Array
from mlx_router.lora.validate import match

COMMON_RANK = 16
BANK_BYTES = 64 * 2**30  # no bound that matters: the bank has one slot
_LINK = re.compile(r"https?://|www\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an adapter may cost."""

    update: float = 1.0  # Frobenius norm of scale * A B, over that of the weight that it changes
    held_out: float = 1.0  # perplexity on its own held-out rows, over the base's
    general: float = 1.5  # perplexity on general rows, over the base's
    lost: float = 0.2  # of the general answers: how many fewer may be right than the base has
    answer_tokens: int = 48  # of a general answer
    max_tokens: int = 1024  # of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One line of the table."""

    name: str
    base: float | None
    adapter: float | None
    limit: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found."""

    name: str
    digest: str
    looks: tuple[Look, ...]

    @property
    def passed(self) -> bool:
        """Whether the adapter may take traffic."""
        return all(look.passed for look in self.looks)

    @property
    def reason(self) -> str:
        """What failed, in one line; empty if nothing did."""
        return "; ".join(look.note or look.name for look in self.looks if not look.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        looks = [{key: _plain(value) for key, value in asdict(look).items()} for look in self.looks]
        return {
            "name": self.name,
            "digest": self.digest,
            "passed": self.passed,
            "reason": self.reason,
            "looks": looks,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else str(value)
    return value


@dataclass(frozen=True, slots=True)
class _Figures:
    perplexity: float
    answers: tuple[str, ...] = ()


class Checker:
    """A base model that adapters are compared with, one after another."""

    def __init__(self, base: Path, *, general: Sequence[ChatRow], limits: Limits | None = None) -> None:
        mlx_lm: Any = importlib.import_module("mlx_lm")
        self.limits = limits or Limits()
        self._model, self._tokenizer = mlx_lm.load(str(base))
        self._general = list(general)
        self._encoded = encode_rows(self._general, self._tokenizer, self.limits.max_tokens) if general else []
        self._base: _Figures | None = None
        self._bank: AdapterBank | None = None

    def check(self, path: Path, valid: Sequence[ChatRow], *, name: str | None = None) -> Report:
        """Every look at the adapter in `path`; a directory that cannot be read or does not fit fails the first."""
        try:
            files = read_adapter(path, name=name)
            bank = self._bank_for(files.rank)
            pairs = match(files, bank.targets, bank.max_rank)
            version = bank.load(files)
        except AdapterError as error:
            note = " ".join(error.message.split())
            look = Look(name="files", base=None, adapter=None, limit=None, passed=False, note=note)
            try:
                digest = adapter_digest(path)
            except (AdapterError, OSError):
                digest = ""
            return Report(name=name or path.name, digest=digest, looks=(look,))
        lease = bank.acquire(version)
        try:
            looks = [*self._file_looks(files, pairs, bank), *self._model_looks(bank, lease, valid)]
        finally:
            lease.release()
            bank.retire(version)
        return Report(name=files.name, digest=files.digest, looks=tuple(looks))

    def _bank_for(self, rank: int) -> AdapterBank:
        """A bank with one slot, used again for every adapter that it can hold."""
        if self._bank is None or self._bank.max_rank < rank:
            size = max(rank, COMMON_RANK)
            self._bank = AdapterBank(self._model, slots=2, max_rank=size, budget_bytes=BANK_BYTES, expert_slots=1)
        return self._bank

    def _file_looks(self, files: AdapterFiles, pairs: Mapping[str, LoraPair], bank: AdapterBank) -> list[Look]:
        zero = [path for path, pair in pairs.items() if not np.any(pair.b)]
        looks = [
            Look(
                name="modules without an update",
                base=None,
                adapter=float(len(zero)),
                limit=len(pairs) / 2,
                passed=len(zero) <= len(pairs) / 2,
                note=f"{len(zero)} of {len(pairs)} modules were never trained" if zero else "",
            )
        ]
        ratios = {
            path: abs(files.scale) * update_norm(pair) / max(weight_norm(bank.targets[path].layer), 1e-30)
            for path, pair in pairs.items()
        }
        worst = max(ratios, key=ratios.__getitem__)
        passed = ratios[worst] <= self.limits.update
        looks.append(
            Look(
                name="largest update",
                base=None,
                adapter=ratios[worst],
                limit=self.limits.update,
                passed=passed,
                note="" if passed else f"{worst} is changed by {ratios[worst]:.2f} times its own size",
            )
        )
        return looks

    def _model_looks(self, bank: AdapterBank, lease: Lease, valid: Sequence[ChatRow]) -> list[Look]:
        looks: list[Look] = []
        base = bank.acquire(None)
        if valid:
            encoded = encode_rows(valid, self._tokenizer, self.limits.max_tokens)
            looks.append(
                self._compare(
                    "held-out perplexity",
                    perplexity(bank, base, encoded),
                    perplexity(bank, lease, encoded),
                    self.limits.held_out,
                )
            )
        if self._general:
            if self._base is None:
                self._base = _Figures(perplexity(bank, base, self._encoded), self._answers(bank, base))
            mine = _Figures(perplexity(bank, lease, self._encoded), self._answers(bank, lease))
            looks.append(
                self._compare("general perplexity", self._base.perplexity, mine.perplexity, self.limits.general)
            )
            looks += self._answer_looks(self._base.answers, mine.answers)
        return looks

    @staticmethod
    def _compare(name: str, base: float, adapter: float, ratio: float) -> Look:
        passed = math.isfinite(adapter) and adapter <= base * ratio
        note = "" if passed else f"{name} {adapter:.2f} against {base:.2f} of the base"
        return Look(name=name, base=base, adapter=adapter, limit=base * ratio, passed=passed, note=note)

    def _answers(self, bank: AdapterBank, lease: Lease) -> tuple[str, ...]:
        return tuple(
            answer(bank, lease, self._tokenizer, row.tokens[: row.offset], self.limits.answer_tokens)
            for row in self._encoded
        )

    def _answer_looks(self, base: Sequence[str], mine: Sequence[str]) -> list[Look]:
        asked = [(row.expect, index) for index, row in enumerate(self._general) if row.expect]
        right = [sum(expect in answers[index] for expect, index in asked) for answers in (base, mine)]
        least = right[0] - max(1, math.floor(self.limits.lost * len(asked)))
        looks = []
        if asked:
            passed = right[1] >= least
            note = "" if passed else f"{right[1]} of {len(asked)} general answers are right, the base has {right[0]}"
            looks.append(
                Look(
                    name=f"general answers right, of {len(asked)}",
                    base=float(right[0]),
                    adapter=float(right[1]),
                    limit=float(least),
                    passed=passed,
                    note=note,
                )
            )
        links = [sum(bool(_LINK.search(text)) for text in answers) for answers in (base, mine)]
        note = "" if links[1] <= links[0] else f"{links[1]} general answers have links, {links[0]} of the base"
        looks.append(
            Look(
                name="answers with links",
                base=float(links[0]),
                adapter=float(links[1]),
                limit=float(links[0]),
                passed=links[1] <= links[0],
                note=note,
            )
        )
        return looks


def perplexity(bank: AdapterBank, lease: Lease, rows: Sequence[EncodedRow]) -> float:
    """exp of the mean negative log-probability of the answers' tokens, under the lease's adapter."""
    total, count = 0.0, 0
    for row in rows:
        tokens = mx.array([row.tokens])
        logits = bank.wrapped(tokens[:, :-1], cache=bank.make_cache(lease))[0, row.offset - 1 :].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, tokens[0, row.offset :])
        total += float(np.array(losses).sum())
        count += len(row.tokens) - row.offset
    mean = total / max(count, 1)
    return math.exp(mean) if mean < 700 else math.inf


def answer(bank: AdapterBank, lease: Lease, tokenizer: Any, prompt: Sequence[int], max_tokens: int) -> str:
    """The most probable answer to a prompt of token ids, under the lease's adapter."""
    cache = bank.make_cache(lease)
    ends = set(tokenizer.eos_token_ids)
    tokens: list[int] = []
    step = mx.array([list(prompt)])
    while len(tokens) < max_tokens:
        token = int(bank.wrapped(step, cache=cache)[0, -1].argmax().item())
        if token in ends:
            break
        tokens.append(token)
        step = mx.array([[token]])
    return str(tokenizer.decode(tokens))


def update_norm(pair: LoraPair) -> float:
    """Frobenius norm of A B, from the two small Gram matrices; of a stack of experts, over all of them."""
    a, b = pair.a.astype(np.float64), pair.b.astype(np.float64)
    dense = not pair.experts  # A (in, r), B (r, out); of experts A (E, r, in), B (E, out, r)
    grams = (a.T @ a, b @ b.T) if dense else (np.einsum("eri,esi->ers", a, a), np.einsum("eor,eos->ers", b, b))
    product: Array = grams[0] * grams[1]
    return math.sqrt(max(float(product.sum()), 0.0))


def weight_norm(layer: nn.Module) -> float:
    """Frobenius norm of a layer's weight, quantized or not."""
    weights: Any = layer
    weight = weights.weight
    if "scales" in weights:
        weight = mx.dequantize(
            weight,
            weights.scales,
            weights.get("biases"),
            group_size=weights.group_size,
            bits=weights.bits,
            mode=weights.mode,
        )
    return float(np.sqrt(np.array(mx.sum(mx.square(weight.astype(mx.float32))))))

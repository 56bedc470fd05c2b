"""The embedded base: a Qwen3 model of a few million parameters, with its own tokenizer, trained in about a minute.

It knows small talk, a few facts and the words of the trade, and answers technical questions in general terms: what
the specialists add can be seen. Its texts are in data/demo and data/specialists.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_router.compute import mx, nn
from mlx_router.lora.rows import ChatRow, read_rows, varied

END, START, TEXT_END = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """Everything that decides what the base becomes, its texts apart."""

    vocabulary: int = 2048
    layers: int = 3
    hidden: int = 256
    middle: int = 640
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    steps: int = 180
    batch_tokens: int = 640
    matrix_rate: float = 0.02  # learning rate of Muon, which moves the matrices
    vector_rate: float = 0.01  # of AdamW, which moves embeddings and norms
    warmup: int = 5  # steps
    seed: int = 7

    def config(self) -> dict[str, Any]:
        """config.json, as mlx-lm reads it."""
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.middle,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "eos_token_id": 1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseTexts:
    """What the base is trained on."""

    chats: Sequence[ChatRow]
    texts: Sequence[str]

    @classmethod
    def read(cls, demo: Path, specialists: Path) -> BaseTexts:
        """Chats and sentences of data/demo; of the specialists' rows, the answers as plain text.

        The specialists' questions are in it too, with the general answers of data/demo/technical.jsonl.
        """
        chats = read_rows(demo / "chat.jsonl")
        technical = read_rows(demo / "technical.jsonl")
        lines = (demo / "texts.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [str(json.loads(line)["text"]) for line in lines if line.strip()]
        for file in training_files(specialists):
            texts += [row.answer for row in read_rows(file)]
        known = [*chats, *technical]
        random = Random(0)  # each also as others would type it
        return cls(chats=[*known, *(varied(row, random) for row in known)], texts=texts)


def training_files(specialists: Path) -> list[Path]:
    """Files of the specialists that the base's words come from, in a fixed order."""
    return sorted(file for file in specialists.glob("[!_]*/*.jsonl") if file.name != "valid.jsonl")


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level BPE with the chat marks; every text has tokens."""
    tokenizers: Any = importlib.import_module("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[TEXT_END, END, START],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def train_base(
    texts: BaseTexts, folder: Path, recipe: BaseRecipe, on_step: Callable[[int, int, float], None]
) -> dict[str, Any]:
    """Train and write a model directory that mlx-lm loads; `on_step(step, steps, loss)`. Returns its figures."""
    began = time.monotonic()
    qwen3: Any = importlib.import_module("mlx_lm.models.qwen3")
    utils: Any = importlib.import_module("mlx.utils")
    corpus = [*texts.texts, *(message["content"] for row in texts.chats for message in row.messages)]
    tokenizer = make_tokenizer(corpus, recipe.vocabulary)
    rows = _encode(texts, tokenizer)
    mx.random.seed(recipe.seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(recipe.config()))
    _initialise(model, recipe)
    loss = _fit(model, rows, recipe, on_step)
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(utils.tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    _write_files(folder, tokenizer, recipe)
    parameters = sum(int(value.size) for value in weights.values())
    return {
        "parameters": parameters,
        "rows": len(rows),
        "tokens": sum(len(tokens) for tokens, _ in rows),
        "loss": loss,
        "seconds": round(time.monotonic() - began, 1),
        "recipe": asdict(recipe),
    }


Row = tuple[list[int], int]  # token ids, and the first position that is learned


def _encode(texts: BaseTexts, tokenizer: Any) -> list[Row]:
    end = tokenizer.token_to_id(TEXT_END)
    rows: list[Row] = [([end, *tokenizer.encode(text).ids, end], 1) for text in texts.texts]
    for row in texts.chats:
        prompt = "".join(f"{START}{item['role']}\n{item['content']}{END}\n" for item in row.messages[:-1])
        head = tokenizer.encode(f"{prompt}{START}assistant\n").ids
        rows.append((head + tokenizer.encode(f"{row.answer}{END}\n").ids, len(head)))
    return rows


def _batches(rows: Sequence[Row], tokens: int, random: np.random.Generator) -> Iterator[list[Row]]:
    """Batches of rows of similar length with at most `tokens` positions, in a new order each pass, without end."""
    while True:
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index][0]) + random.uniform(0, 6), index))
        batches: list[list[Row]] = [[]]
        for index in order:
            if batches[-1] and len(rows[index][0]) * (len(batches[-1]) + 1) > tokens:
                batches.append([])
            batches[-1].append(rows[index])
        for place in random.permutation(len(batches)):
            yield batches[int(place)]


def _arrays(batch: Sequence[Row]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Inputs (B, T), and of the learned positions their index in B*T and the token that follows: (P,), (P,)."""
    width = max(len(tokens) for tokens, _ in batch) - 1
    inputs = np.zeros((len(batch), width), np.int32)
    places: list[int] = []
    targets: list[int] = []
    for number, (tokens, start) in enumerate(batch):
        inputs[number, : len(tokens) - 1] = tokens[:-1]
        places += range(number * width + start - 1, number * width + len(tokens) - 1)
        targets += tokens[start:]
    return inputs, np.array(places, np.int32), np.array(targets, np.int32)


def _fit(
    model: nn.Module, rows: Sequence[Row], recipe: BaseRecipe, on_step: Callable[[int, int, float], None]
) -> float:
    """Minimise the loss over the learned positions; the mean loss of the last tenth of the steps."""
    optimizers: Any = importlib.import_module("mlx.optimizers")
    net: Any = model

    def loss_of(inputs: mx.array, places: mx.array, targets: mx.array) -> mx.array:
        hidden = net.model(inputs)
        chosen = mx.take(hidden.reshape(-1, hidden.shape[-1]), places, axis=0)
        return nn.losses.cross_entropy(net.model.embed_tokens.as_linear(chosen), targets, reduction="mean")

    step_of = nn.value_and_grad(model, loss_of)
    muon = optimizers.Muon(learning_rate=recipe.matrix_rate, weight_decay=0.0, ns_steps=4)
    adam = optimizers.AdamW(learning_rate=recipe.vector_rate, betas=[0.9, 0.98], weight_decay=0.0, bias_correction=True)
    both = optimizers.MultiOptimizer([muon, adam], [lambda path, value: value.ndim == 2 and "embed" not in path])
    random = np.random.default_rng(recipe.seed)
    last: list[float] = []
    for step, batch in zip(range(recipe.steps), _batches(rows, recipe.batch_tokens, random), strict=False):
        share = min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.95 * _cosine(step / recipe.steps))
        muon.learning_rate, adam.learning_rate = recipe.matrix_rate * share, recipe.vector_rate * share
        loss, gradients = step_of(*(mx.array(part) for part in _arrays(batch)))
        both.update(model, optimizers.clip_grad_norm(gradients, 1.0)[0])
        mx.eval(net.parameters(), both.state, loss)
        value = float(loss.item())
        on_step(step + 1, recipe.steps, value)
        if step >= recipe.steps * 0.9:
            last.append(value)
    return round(sum(last) / len(last), 4)


def _initialise(model: nn.Module, recipe: BaseRecipe) -> None:
    """Normal weights: 0.05 for embeddings, 1/sqrt(inputs) for matrices, less for those that write to the residual."""
    utils: Any = importlib.import_module("mlx.utils")

    def draw(path: str, value: mx.array) -> mx.array:
        if value.ndim < 2:
            return value
        deviation = 0.05 if "embed" in path else 1.0 / math.sqrt(value.shape[1])
        if path.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= math.sqrt(2 * recipe.layers)
        return mx.random.normal(value.shape) * deviation

    net: Any = model
    net.update(utils.tree_map_with_path(draw, net.parameters()))
    mx.eval(net.parameters())


def _cosine(part: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * part))


def _write_files(folder: Path, tokenizer: Any, recipe: BaseRecipe) -> None:
    (folder / "config.json").write_text(json.dumps(recipe.config(), indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": TEXT_END,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

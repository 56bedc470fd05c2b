"""MiniLM (BERT, 6 layers, 384 wide) in MLX; parameter names are the checkpoint's own keys."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_router.compute import mx, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Sizes of sentence-transformers/all-MiniLM-L6-v2, config.json."""

    vocab_size: int = 30522
    hidden_size: int = 384
    layers: int = 6
    heads: int = 12
    intermediate_size: int = 1536
    max_positions: int = 512
    layer_norm_eps: float = 1e-12


class Embeddings(nn.Module):
    """Word + position + token type 0, normalised: (B, T) -> (B, T, D)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, ids: mx.array) -> mx.array:
        position = self.position_embeddings.weight[: ids.shape[1]]
        kind = self.token_type_embeddings.weight[0]
        normed: mx.array = self.LayerNorm(self.word_embeddings(ids) + position + kind)
        return normed


class SelfAttention(nn.Module):
    """Multi-head attention without its output projection: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        B, T, D = x.shape
        q, k, v = (
            layer(x).reshape(B, T, self.heads, -1).transpose(0, 2, 1, 3) for layer in (self.query, self.key, self.value)
        )
        scale = (D // self.heads) ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return mixed.transpose(0, 2, 1, 3).reshape(B, T, D)


class AddAndNorm(nn.Module):
    """Project, add the residual, normalise."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        normed: mx.array = self.LayerNorm(self.dense(x) + residual)
        return normed


class Attention(nn.Module):
    """Self-attention block; the checkpoint names its inner part `self`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config.hidden_size, config)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        normed: mx.array = self.output(self.self(x, mask), x)
        return normed


class Intermediate(nn.Module):
    """Widen and activate; erf GELU as the checkpoint was trained with."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.dense(x))


class Layer(nn.Module):
    """One transformer block, post-norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate_size, config)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = self.attention(x, mask)
        normed: mx.array = self.output(self.intermediate(x), x)
        return normed


class Stack(nn.Module):
    """All blocks in order."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = [Layer(config) for _ in range(config.layers)]

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Bert(nn.Module):
    """Token ids (B, T) and mask (B, T) -> hidden states (B, T, 384)."""

    def __init__(self, config: BertConfig | None = None) -> None:
        super().__init__()
        config = config or BertConfig()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)

    def __call__(self, ids: mx.array, mask: mx.array) -> mx.array:
        x = self.embeddings(ids)
        hidden: mx.array = self.encoder(x, additive_mask(mask, x.dtype))
        return hidden


def additive_mask(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """(B, T) of 0 and 1 -> (B, 1, 1, T): 0 where a token may be seen, a large negative number where not."""
    return mx.where(mask[:, None, None, :] > 0, 0.0, -1e4).astype(dtype)

"""The weights of a block that Muon updates, by arithmetic: how many there are of each shape [rows, columns]."""

from __future__ import annotations

from collections import Counter

from evo_core.config import ModelConfig

Shapes = Counter[tuple[int, int]]


def linear_weights(model: ModelConfig, *, fused: bool) -> Shapes:
    """All but experts.

    Args:
        fused: count the projection of queries, keys and values as one.
    """
    hidden, width = model.hidden_size, model.head_dim
    heads, kv_heads = model.num_attention_heads * width, model.num_kv_attention_heads * width
    found = Counter([(hidden, heads)])
    found.update(
        [(heads + 2 * kv_heads, hidden)] if fused else [(heads, hidden), (kv_heads, hidden), (kv_heads, hidden)]
    )
    if model.num_experts == 1 or model.moe_use_residual:
        found.update(_mlp(model))
    return found


def expert_weights(model: ModelConfig, ranks: int) -> Shapes:
    """Of the experts that each of so many ranks has."""
    here = model.num_experts // ranks if model.num_experts > 1 else 0
    return Counter({shape: here * count for shape, count in _mlp(model).items() if here})


def _mlp(model: ModelConfig) -> Shapes:
    up, down = (model.mlp_hidden_size, model.hidden_size), (model.hidden_size, model.mlp_hidden_size)
    return Counter([down, *[up] * (2 if model.use_swiglu else 1)])

"""The order of rows in query, key and value weights: how systems differ, and how to go from one to the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evo_core.model.families.family import QKVLayout


def pairs_to_halves(x: Tensor, head_dim: int) -> Tensor:
    """Rows whose rotary pairs are neighbours (Meta), in the order where a pair is i and i + head_dim/2 (Hugging Face).

    x: [heads * head_dim, ...]; of a norm over one head, [head_dim].
    """
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def halves_to_pairs(x: Tensor, head_dim: int) -> Tensor:
    """The way back of `pairs_to_halves`: x [heads * head_dim, ...], or [head_dim], to the same shape."""
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def part_of_qkv(x: Tensor, part: str, layout: QKVLayout, heads: int, kv_heads: int, head_dim: int) -> Tensor:
    """The rows of "q", "k" or "v" in one weight or bias that holds all three; see `QKVLayout`.

    x: [(heads + 2 * kv_heads) * head_dim, ...] -> [heads or kv_heads * head_dim, ...].
    """
    if layout == "blocked":
        sizes = [count * head_dim for count in (heads, kv_heads, kv_heads)]
        return x.split(sizes, dim=0)["qkv".index(part)]
    group = heads // kv_heads
    rows = x.unflatten(0, (kv_heads, group + 2, head_dim))
    return rows.split((group, 1, 1), dim=1)["qkv".index(part)].flatten(0, 2)


def to_qkv(parts: Sequence[Tensor], layout: QKVLayout, kv_heads: int, head_dim: int) -> Tensor:
    """One weight or bias of the query, key and value rows, the way back of `part_of_qkv`.

    parts: [heads * head_dim, ...] and twice [kv_heads * head_dim, ...] -> [(heads + 2 * kv_heads) * head_dim, ...].
    """
    if layout == "blocked":
        return torch.cat(list(parts))
    return torch.cat([part.unflatten(0, (kv_heads, -1, head_dim)) for part in parts], dim=1).flatten(0, 2)

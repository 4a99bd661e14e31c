"""Attention of which each rank does some heads over the whole sequence (DeepSpeed-Ulysses, arXiv:2309.14509)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evo_core.model.draws import LayerDraws
from evo_core.model.ops.attention import AttentionCache
from evo_core.model.ops.documents import Documents
from evo_core.parallel.collectives import all_to_all
from evo_core.parallel.mesh import Axis


class HeadsAttention(nn.Module):
    """Another attention, handed all rows of some heads where some rows of all heads come in.

    Args:
        core: see `CausalAttention`.
        axis: the ranks that share the sequence; their number divides that of query heads, and that of key/value heads
            divides it or the other way round.
    """

    def __init__(self, core: nn.Module, axis: Axis) -> None:
        super().__init__()
        self.core, self.axis = core, axis

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Documents,
        cache: AttentionCache | None = None,
        draws: LayerDraws | None = None,
    ) -> Tensor:
        """q [T / ranks, heads, d], k and v [T / ranks, kv_heads, d] -> [T / ranks, heads, d].

        Args:
            documents: of all T tokens.
        """
        if cache is not None:
            raise ValueError("generation runs at layouts that leave the sequence whole")
        repeats = max(self.axis.size // k.shape[1], 1)
        k, v = (each.repeat_interleave(repeats, dim=1) if repeats > 1 else each for each in (k, v))
        out = self.core(*_ToHeads.apply(self.axis, q, k, v), documents, None, draws)
        return _ToRows.apply(self.axis, out)


class _ToHeads(torch.autograd.Function):
    """Several [T / ranks, heads, d] -> [T, heads / ranks, d], in one message."""

    @staticmethod
    def forward(ctx: Any, axis: Axis, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.axis, ctx.heads = axis, [part.shape[1] // axis.size for part in parts]
        return rows_to_heads(axis, parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *heads_to_rows(ctx.axis, torch.cat(grads, dim=1), ctx.heads)


class _ToRows(torch.autograd.Function):
    """[T, heads / ranks, d] -> [T / ranks, heads, d]."""

    @staticmethod
    def forward(ctx: Any, axis: Axis, x: Tensor) -> Tensor:
        ctx.axis = axis
        return heads_to_rows(axis, x, [x.shape[1]])[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, rows_to_heads(ctx.axis, grads)[0]


def rows_to_heads(axis: Axis, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Several [T / ranks, heads, d] -> of each all rows of the heads here, [T, heads / ranks, d]."""
    split = [part.unflatten(1, (axis.size, -1)).transpose(0, 1) for part in parts]
    sent = torch.cat(split, dim=2).contiguous()
    received = torch.empty_like(sent)
    all_to_all(received, sent, axis.group).wait()
    return received.flatten(0, 1).split([each.shape[2] for each in split], dim=1)


def heads_to_rows(axis: Axis, x: Tensor, heads: list[int]) -> tuple[Tensor, ...]:
    """All rows of some heads of several things behind one another, [T, sum of heads, d] -> of each of them the rows
    here of the heads of all ranks, [T / ranks, ranks * heads, d]."""
    sent = x.contiguous().unflatten(0, (axis.size, -1))
    received = torch.empty_like(sent)
    all_to_all(received, sent, axis.group).wait()
    return tuple(part.transpose(0, 1).flatten(1, 2) for part in received.split(heads, dim=2))

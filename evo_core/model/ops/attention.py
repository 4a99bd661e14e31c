"""Causal attention over packed documents: the module, and what it is called with.

Which kernel runs where is in attention_kernels.py. The reference they are all tested against is a dense mask in
float64.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from evo_core.model.draws import LayerDraws
from evo_core.model.ops.attention_kernels import choose
from evo_core.model.ops.documents import Documents


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, as generation keeps them."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Remember k and v of these tokens, and attend from q over all that is remembered.

        Args:
            layer: number in the whole model.
            q: [T, heads, d].
            k, v: [T, kv_heads, d].
            documents: where each begins among the T tokens.

        Returns:
            [T, heads, d].
        """
        ...


class CausalAttention(nn.Module):
    """The attention of one layer between projection and output: no weights, one place to choose a kernel.

    Args:
        layer: its number in the whole model, by which a cache knows it.
        use_flash_attn: False keeps to one call per document even where a variable-length kernel exists.
        dropout: share of the attention weights that is dropped in training.
    """

    def __init__(self, layer: int, *, use_flash_attn: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer, self.use_flash_attn, self.dropout = layer, use_flash_attn, dropout

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Documents,
        cache: AttentionCache | None = None,
        draws: LayerDraws | None = None,
    ) -> Tensor:
        """q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d].

        Args:
            documents: where each begins and ends among the T tokens.
            cache: attends in place of a kernel, over what it remembers too.
            draws: what dropout follows from; None drops nothing.
        """
        if cache is not None:
            return cache.attend(self.layer, q, k, v, documents)
        dropout = 0.0 if draws is None else self.dropout
        if dropout and draws is not None:
            draws.seed_kernels(q.device, "attention weights")
        return packed_attention(q, k, v, documents, use_flash_attn=self.use_flash_attn, dropout=dropout)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, *, use_flash_attn: bool = True, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each token seeing the tokens up to itself in its own document.

    q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d]; query head h reads key/value head
    ``h // (heads / kv_heads)``. A share ``dropout`` of the softmax's values is set to 0, and the others grow by
    ``1 / (1 - dropout)``.
    """
    kernel = choose(q.device.type, q.dtype, q.shape[-1], use_flash_attn, dropout > 0)
    return kernel.run(q, k, v, documents, dropout)


def attention_kernel(
    device: torch.device | str,
    dtype: torch.dtype,
    use_flash_attn: bool = True,
    *,
    head_dim: int = 128,
    dropout: float = 0.0,
) -> tuple[str, str]:
    """(name, why) of the kernel that runs for such tensors, for the start-up line."""
    kernel = choose(torch.device(device).type, dtype, head_dim, use_flash_attn, dropout > 0)
    return kernel.name, kernel.why

"""The floating-point operations that a model needs, counted, and what a chip has at most: MFU is the share between.

Per step, a product of m x k and k x n counted as 2 m k n, and nothing but products::

    forward   2 w T + 4 L H d P     w weights that a token is multiplied with, T tokens, L layers of H heads d wide;
                                    P pairs of a token and one that it sees, l (l + 1) / 2 of a document of l tokens
    model     3 x forward                   the backward pass makes the gradients of both factors of each product
    hardware  model + forward of what is computed again in the backward pass

(Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, but for causal attention within documents.) w has the head,
not the embedding, which is no product; of a mixture of experts those that a token is sent to, and the router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


class Flops(NamedTuple):
    """What tokens and pairs of tokens cost in training.

    Attributes:
        per_token: products with weights, of each token.
        per_pair: attention, of each pair.
    """

    per_token: float
    per_pair: float

    def of(self, tokens: float, pairs: float) -> float:
        """Of so many of them."""
        return self.per_token * tokens + self.per_pair * pairs


def model_flops(cfg: ModelConfig) -> Flops:
    """What training needs, however it is carried out."""
    layers, head = cfg.num_layers, cfg.hidden_size * cfg.vocab_size
    return Flops(6 * (layers * block_weights(cfg) + head), 12 * layers * cfg.num_attention_heads * cfg.head_dim)


def hardware_flops(cfg: ModelConfig, again: int) -> Flops:
    """The same with the blocks that are computed again, so many of them."""
    model = model_flops(cfg)
    per_token = model.per_token + 2 * again * block_weights(cfg)
    return Flops(per_token, model.per_pair + 4 * again * cfg.num_attention_heads * cfg.head_dim)


def block_weights(cfg: ModelConfig) -> int:
    """Weights of a block that each token is multiplied with."""
    hidden, width = cfg.hidden_size, cfg.head_dim
    attention = hidden * width * 2 * (cfg.num_attention_heads + cfg.num_kv_attention_heads)
    mlp = (3 if cfg.use_swiglu else 2) * hidden * cfg.mlp_hidden_size
    if cfg.num_experts == 1:
        return attention + mlp
    router, residual = hidden * cfg.num_experts, (mlp + 2 * hidden) if cfg.moe_use_residual else 0
    return attention + router + cfg.moe.top_k * mlp + residual


_PEAKS = {
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Teraflops of dense products of 16-bit numbers added up in 32, by what a device's name has in it, as the makers state
them; of names of which one is a part of another the longer comes first."""


def peak_tflops(device: torch.device, dtype: torch.dtype) -> tuple[str, float] | None:
    """The name of a chip and its peak, where it is known for that type."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> tuple[str, float] | None:
    """The peak of a chip that calls itself so."""
    words = name.replace("-", " ").split()
    for known, peak in _PEAKS.items():
        parts = known.split()
        if all(any(word == part for word in words) for part in parts):
            return name, peak
    return None

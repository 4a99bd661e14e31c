"""The floating-point operations that a model needs, and those that are carried out for it: mfu and hfu count them.

Per step, a product of m x k and k x n counted as 2 m k n, and nothing but products::

    forward   2 w T + 4 L H d P     w weights that a token is multiplied with, T tokens, L layers of H heads d wide;
                                    P pairs of a token and one that it sees, l (l + 1) / 2 of a document of l tokens
    model     3 x forward                   the backward pass makes the gradients of both factors of each product
    hardware  model + what is computed again of the forward pass

(Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, but for causal attention within documents.) w has the head,
tied or not, and not the embedding, which is no product; of a mixture of experts those that a token is sent to, though a
full one drop it, and the router. Padding is computed with, and counts like any document. What a kernel of attention
computes again by itself, or computes of pairs that are masked, does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    """The same with what so many blocks compute again in the backward pass."""
    model = model_flops(cfg)
    per_token = model.per_token + 2 * again * (block_weights(cfg) - _not_again(cfg))
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


def _not_again(cfg: ModelConfig) -> int:
    """Weights of a block's last product where nothing behind it keeps what it gives: a block that is computed again
    ends before it, unless it is compiled as a whole."""
    if cfg.num_experts > 1 or cfg.apply_post_layer_norm or cfg.drop_rate or cfg.compile:
        return 0
    return cfg.hidden_size * cfg.mlp_hidden_size

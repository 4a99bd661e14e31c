"""The decoder: one for every family, written for one process.

    token ids -> embedding -> blocks of attention and MLP on a residual stream -> norm -> head

Sequences are packed: all documents of a micro-batch lie behind one another in one sequence of T tokens, and
``cu_seqlens`` says where each begins; no token sees another document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.families import Family
from evo_core.model.ops.attention import AttentionCache, CausalAttention
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.dynamic_ntk import document_bases
from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import Gate, MixtureMLP
from evo_core.model.ops.norm import Norm
from evo_core.model.ops.rope import Rotary, rotary, rotate
from evo_core.model.roles import RoleModule

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


@dataclass
class ModelOutput:
    """What a forward pass gives: with labels loss, nll and hit; without labels logits.

    loss: scalar, mean over labels that are not -100, in float32 or wider, with label smoothing.
    nll:  [T] negative log-likelihood in nats, without smoothing; 0 where the label is -100.
    hit:  [T] bool, whether the most likely token is the label; False where the label is -100.
    logits: [T, vocab_size] in the model's dtype.
    moe_loss: scalar, the sum of the layers' balance losses, float32 or wider; None without experts.
    """

    loss: Tensor | None = None
    nll: Tensor | None = None
    hit: Tensor | None = None
    logits: Tensor | None = None
    moe_loss: Tensor | None = None

    def objective(self, moe_loss_coeff: float) -> Tensor:
        """What training lowers: the loss, and the balance losses times their coefficient."""
        if self.loss is None:
            raise ValueError("the model was given no labels")
        return self.loss if self.moe_loss is None else self.loss + moe_loss_coeff * self.moe_loss


class Attention(RoleModule):
    """Causal self-attention with rotary positions and grouped key/value heads, their queries and keys normed or not."""

    def __init__(self, cfg: ModelConfig, family: Family, layer: int, **factory: Any) -> None:
        super().__init__(family.attention_names)
        self.layout, self.head_dim = family.qkv, cfg.head_dim
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_kv_attention_heads
        q_size, kv_size, bias = self.heads * self.head_dim, self.kv_heads * self.head_dim, not cfg.no_bias
        if self.layout == "split":
            self.q = Linear(cfg.hidden_size, q_size, bias=bias, **factory)
            self.k = Linear(cfg.hidden_size, kv_size, bias=bias, **factory)
            self.v = Linear(cfg.hidden_size, kv_size, bias=bias, **factory)
        else:
            self.qkv = Linear(cfg.hidden_size, q_size + 2 * kv_size, bias=bias, **factory)
        if cfg.qk_norm:
            self.q_norm = make_norm(cfg, self.head_dim, **factory)
            self.k_norm = make_norm(cfg, self.head_dim, **factory)
        self.qk_norm = cfg.qk_norm
        self.core = CausalAttention(layer, use_flash_attn=cfg.use_flash_attn, dropout=cfg.attn_drop_rate)
        self.out = Linear(q_size, cfg.hidden_size, bias=bias, **factory)

    def forward(self, x: Tensor, rotation: Rotary, documents: Documents, cache: AttentionCache | None = None) -> Tensor:
        """x [T, hidden_size] -> [T, hidden_size]."""
        q, k, v = self.project(x)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rotation).view(x.shape[0], -1, self.head_dim), rotate(k, rotation)
        return self.out(self.core(q, k, v, documents, cache).flatten(1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, heads, d] (grouped: [T, kv_heads, heads / kv_heads, d]), k and v [T, kv_heads, d]; not rotated."""
        if self.layout == "split":
            return tuple(linear(x).unflatten(1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        qkv = self.qkv(x)
        if self.layout == "blocked":
            return qkv.unflatten(1, (-1, self.head_dim)).split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        group = self.heads // self.kv_heads
        q, k, v = qkv.unflatten(1, (-1, group + 2, self.head_dim)).split((group, 1, 1), dim=2)
        return q, k.squeeze(2), v.squeeze(2)


class Block(RoleModule):
    """Attention, then MLP, each added to the residual stream.

    Normed before each part, or with ``apply_post_layer_norm`` after each sum. With ``num_experts`` the MLP is a
    mixture of experts.
    """

    def __init__(self, cfg: ModelConfig, family: Family, layer: int, **factory: Any) -> None:
        super().__init__(family.block_names)
        self.post_norm, self.drop_rate = cfg.apply_post_layer_norm, cfg.drop_rate
        self.attention = Attention(cfg, family, layer, **factory)
        self.attention_norm = make_norm(cfg, cfg.hidden_size, **factory)
        self.mlp: MLP | MixtureMLP
        if cfg.num_experts > 1:
            self.mlp = MixtureMLP(cfg, **factory)
        else:
            self.mlp = MLP(cfg.hidden_size, cfg.mlp_hidden_size, gated=cfg.use_swiglu, **factory)
        self.mlp_norm = make_norm(cfg, cfg.hidden_size, **factory)

    def forward(
        self, x: Tensor, rotation: Rotary, documents: Documents, cache: AttentionCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [T, hidden_size] -> the same shape, and the balance loss of the block's experts, if it has any."""
        if self.post_norm:
            x = self.attention_norm(x + self._drop(self.attention(x, rotation, documents, cache)))
            out, balance = self._feed(x, cache)
            return self.mlp_norm(x + out), balance
        x = x + self._drop(self.attention(self.attention_norm(x), rotation, documents, cache))
        out, balance = self._feed(self.mlp_norm(x), cache)
        return x + out, balance

    def _feed(self, x: Tensor, cache: AttentionCache | None) -> tuple[Tensor, Tensor | None]:
        balance = None
        if isinstance(self.mlp, MixtureMLP):
            x, balance = self.mlp(x, keep_all=cache is not None)
        else:
            x = self.mlp(x)
        return self._drop(x), balance

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class Decoder(RoleModule):
    """A decoder-only language model.

    Args:
        cfg: the `model` block.
        family: its names and row order (evo_core.model.families).
        device, dtype: of the weights, which are left uninitialised; "meta" holds none.
    """

    def __init__(self, cfg: ModelConfig, family: Family, *, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(family.decoder_names)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cfg, self.family, self.dtype = cfg, family, dtype
        #: Ids that end a text, besides the tokenizer's own: they come and go with the weights.
        self.ending: frozenset[int] = frozenset()
        #: The first so many blocks keep only their input and run again in the backward pass.
        self.recomputed_blocks = int(cfg.num_layers * float(cfg.checkpoint))

        scale = cfg.embed_grad_scale
        self.embedding = Embedding(cfg.vocab_size, cfg.hidden_size, grad_scale=scale, **factory)
        self.blocks = nn.ModuleList(Block(cfg, family, layer, **factory) for layer in range(cfg.num_layers))
        if not cfg.apply_post_layer_norm:
            self.norm = make_norm(cfg, cfg.hidden_size, **factory)
        tied_to = self.embedding if cfg.tie_word_embeddings else None
        self.head = Head(
            cfg.hidden_size, cfg.vocab_size, norm_head=cfg.norm_head, grad_scale=scale, tied_to=tied_to, **factory
        )
        gates = (module for module in self.modules() if isinstance(module, Gate))
        #: Whether blocks take random numbers in training; recomputing one must then take the same ones again.
        self.draws = bool(cfg.drop_rate or cfg.attn_drop_rate) or any(gate.draws for gate in gates)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        labels: Tensor | None = None,
        max_seqlen: int | None = None,
        label_smoothing: float = 0.0,
    ) -> ModelOutput:
        """One packed sequence.

        Args:
            input_ids: [T] int64.
            positions: [T] int64, each token's place in its own document.
            cu_seqlens: [n + 1] int32, where the n documents begin and end; the last is T.
            labels: [T] int64, the token after each; -100 is ignored. None asks for logits.
            max_seqlen: length of the longest document, if known (saves a device synchronisation).
            label_smoothing: in [0, 1).
        """
        hidden, moe_loss = self._run(input_ids, positions, Documents(cu_seqlens, max_seqlen), None, None)
        if labels is None:
            return ModelOutput(logits=self.head.logits(hidden), moe_loss=moe_loss)
        loss, nll, hit = self.head.loss(hidden, labels, label_smoothing)
        return ModelOutput(loss=loss, nll=nll, hit=hit, moe_loss=moe_loss)

    def rotation(self, positions: Tensor, base: float | Tensor | None = None) -> Rotary:
        """The rotation at positions [T]; another base than the block's stretches the positions (Dynamic NTK)."""
        cfg = self.cfg
        base = cfg.rope_base if base is None else base
        interleaved, scaling = cfg.qk_interleaved, cfg.rope_scaling
        return rotary(positions, cfg.head_dim, base, interleaved=interleaved, dtype=self.dtype, scaling=scaling)

    def _stretched_base(self, documents: Documents) -> float | Tensor | None:
        """With Dynamic NTK, outside training, the rotary bases of documents beyond the trained length."""
        cfg = self.cfg
        if self.training or not cfg.use_dynamic_ntk_rope:
            return None
        trained, factor = cfg.max_position_embeddings, cfg.dynamic_ntk_factor
        return document_bases(cfg.rope_base, cfg.head_dim, documents, trained, factor)

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        cache: AttentionCache | None = None,
        rotation: Rotary | None = None,
    ) -> Tensor:
        """What the head reads: [T, hidden_size].

        Args:
            input_ids, positions: [T] int64.
            documents: where each begins.
            cache: keys and values of earlier tokens, for generation.
            rotation: of these tokens; None is the usual one at their positions.
        """
        return self._run(input_ids, positions, documents, cache, rotation)[0]

    def _run(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        cache: AttentionCache | None,
        rotation: Rotary | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and the sum of the blocks' balance losses."""
        cfg = self.cfg
        x = self.embedding(input_ids)
        if cfg.drop_rate:
            x = F.dropout(x, cfg.drop_rate, self.training)
        if cfg.residual_in_fp32:
            x = x.to(accumulation_dtype(self.dtype))
        rotation = self.rotation(positions, self._stretched_base(documents)) if rotation is None else rotation
        balances = []
        keeps_random_state = self.draws and self.training
        for layer, block in enumerate(self.blocks):
            if layer < self.recomputed_blocks and torch.is_grad_enabled() and cache is None:
                x, balance = recompute_in_backward(
                    block, x, rotation, documents, use_reentrant=False, preserve_rng_state=keeps_random_state
                )
            else:
                x, balance = block(x, rotation, documents, cache)
            if balance is not None:
                balances.append(balance)
        hidden = x if cfg.apply_post_layer_norm else self.norm(x)
        return hidden, torch.stack(balances).sum() if balances else None


def make_norm(cfg: ModelConfig, size: int, *, device: torch.device | str, dtype: torch.dtype) -> Norm:
    """A norm as the `model` block asks for; with use_fp32_norm its weights are float32 or wider."""
    return Norm(
        cfg.norm_type,
        size,
        cfg.layer_norm_epsilon,
        out_dtype=dtype,
        device=device,
        dtype=accumulation_dtype(dtype) if cfg.use_fp32_norm else dtype,
    )

"""The decoder: one for every family, written for one process.

    token ids -> embedding -> blocks of attention and MLP on a residual stream -> norm -> head

Sequences are packed: all documents of a micro-batch lie behind one another in one sequence of T tokens, and
``cu_seqlens`` says where each begins; no token sees another document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from evo_core.model.aliases import AliasedModule
from evo_core.model.draws import Draws, LayerDraws
from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.families import Family
from evo_core.model.ops.attention import AttentionCache, CausalAttention
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.dynamic_ntk import document_bases
from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import Linear, of_one_input
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import Gate, MixtureMLP
from evo_core.model.ops.norm import Norm
from evo_core.model.ops.rope import Rotary, rotary, rotate
from evo_core.model.recompute import recompute_once
from evo_core.model.stage import Stage
from evo_core.placement import Held

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


@dataclass
class ModelOutput:
    """What a forward pass gives: with labels loss, nll and hit; without labels logits; without a head hidden states.

    loss: scalar, mean over labels that are not -100, in float32 or wider, with label smoothing.
    nll:  [T] negative log-likelihood in nats, without smoothing; 0 where the label is -100.
    hit:  [T] bool, whether the most likely token is the label; False where the label is -100.
    logits: [T, vocab_size] in the model's dtype.
    hidden: [T, hidden_size], what the next stage goes on with, in the dtype of the residual stream.
    moe_loss: scalar, the sum of the balance losses of all layers so far, float32 or wider; None without experts.
    """

    loss: Tensor | None = None
    nll: Tensor | None = None
    hit: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None
    moe_loss: Tensor | None = None

    def objective(self, moe_loss_coeff: float) -> Tensor:
        """What training lowers: the loss, and the balance losses times their coefficient; a scalar.

        Raises:
            ValueError: there is no loss, since the model was given no labels or has no head.
        """
        if self.loss is None:
            raise ValueError("the model was given no labels, or is a stage without a head")
        return self.loss if self.moe_loss is None else self.loss + moe_loss_coeff * self.moe_loss


class Attention(AliasedModule):
    """Causal self-attention with rotary positions and grouped key/value heads, their queries and keys normed or not.

    Its linear layers may be replaced by ones that hold a part of the rows and return a part of the heads, for more
    tokens than came in: heads and tokens are read from what they return.
    """

    def __init__(self, cfg: ModelConfig, family: Family, layer: int, **factory: Any) -> None:
        super().__init__(family.attention_names)
        self.layout, self.head_dim = family.qkv, cfg.head_dim
        #: Query heads that share a key/value head.
        self.group = cfg.num_attention_heads // cfg.num_kv_attention_heads
        q_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_kv_attention_heads * cfg.head_dim
        bias = not cfg.no_bias
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

    def forward(
        self,
        x: Tensor,
        rotation: Rotary,
        documents: Documents,
        cache: AttentionCache | None = None,
        draws: LayerDraws | None = None,
    ) -> Tensor:
        """x [T, hidden_size] -> [T, hidden_size]; see `Block.forward`."""
        q, k, v = self.project(x)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        # q's own rows: a projection may have gathered the tokens of which x holds a part.
        q, k = rotate(q, rotation).view(q.shape[0], -1, self.head_dim), rotate(k, rotation)
        return self.out(self.core(q, k, v, documents, cache, draws).flatten(1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, not rotated.

        Args:
            x: [T, hidden_size].

        Returns:
            q [T, heads, d] (grouped: [T, kv_heads, heads / kv_heads, d]), k and v [T, kv_heads, d].
        """
        if self.layout == "split":
            parts = of_one_input(x, self.q, self.k, self.v)
            return tuple(part.unflatten(1, (-1, self.head_dim)) for part in parts)
        qkv = self.qkv(x)
        heads, kv_heads = self._heads_among(qkv.shape[1])
        if self.layout == "blocked":
            return qkv.unflatten(1, (-1, self.head_dim)).split((heads, kv_heads, kv_heads), dim=1)
        group = heads // kv_heads
        q, k, v = qkv.unflatten(1, (kv_heads, group + 2, self.head_dim)).split((group, 1, 1), dim=2)
        return q, k.squeeze(2), v.squeeze(2)

    @property
    def heads(self) -> int:
        """Query heads that come out of the projections."""
        return self.q.out_features // self.head_dim if self.layout == "split" else self._fused_heads[0]

    @property
    def kv_heads(self) -> int:
        """Key/value heads that come out of the projections."""
        return self.k.out_features // self.head_dim if self.layout == "split" else self._fused_heads[1]

    @property
    def _fused_heads(self) -> tuple[int, int]:
        return self._heads_among(self.qkv.out_features)

    def _heads_among(self, columns: int) -> tuple[int, int]:
        """Query and key/value heads in so many columns of a fused projection.

        They are whole groups, or where key/value heads are fewer than the parts, a part of one group's queries with
        its key and value.
        """
        heads = columns // self.head_dim
        kv_heads = max(1, heads // (self.group + 2))
        return heads - 2 * kv_heads, kv_heads


class Block(AliasedModule):
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
        self,
        x: Tensor,
        rotation: Rotary,
        documents: Documents,
        cache: AttentionCache | None = None,
        draws: LayerDraws | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One block on the residual stream.

        Args:
            x: [T, hidden_size], in the dtype of the residual stream.
            rotation: of the tokens that attention's projections give.
            documents: where each begins and ends among them.
            cache: keys and values of earlier tokens, for generation.
            draws: what dropout and router draw from; None drops nothing and draws nothing.

        Returns:
            [T, hidden_size], and the balance loss of the block's experts, a scalar; None without experts.
        """
        if self.post_norm:
            out = self.attention(x, rotation, documents, cache, draws)
            x = self.attention_norm(x + self._drop(out, draws, "attention"))
            out, balance = self._feed(x, cache, draws)
            return self.mlp_norm(x + out), balance
        out = self.attention(self.attention_norm(x), rotation, documents, cache, draws)
        x = x + self._drop(out, draws, "attention")
        out, balance = self._feed(self.mlp_norm(x), cache, draws)
        return x + out, balance

    def _feed(self, x: Tensor, cache: AttentionCache | None, draws: LayerDraws | None) -> tuple[Tensor, Tensor | None]:
        balance = None
        if isinstance(self.mlp, MixtureMLP):
            # Generation drops no token: what a text reads must not depend on those beside it in the batch.
            x, balance = self.mlp(x, keep_all=cache is not None, draws=draws)
        else:
            x = self.mlp(x)
        return self._drop(x, draws, "mlp"), balance

    def _drop(self, x: Tensor, draws: LayerDraws | None, site: str) -> Tensor:
        return draws.dropout(x, self.drop_rate, site) if self.drop_rate and draws is not None else x


class Decoder(AliasedModule):
    """A decoder-only language model, or stages of one (evo_core/model/stage.py).

    Args:
        cfg: the `model` block.
        family: its names and row order (evo_core.model.families).
        device, dtype: of the weights, which are left uninitialised; "meta" holds none.

    Attributes:
        embedding, norm, head: None where another stage has them; norm None too with norms after each sum. A last stage
            with a tied head keeps an embedding that it does not read, for its weight.
        blocks: by their number in the whole model, as a string.
        stages: which parts of the model these are, in the order of the model.
    """

    def __init__(self, cfg: ModelConfig, family: Family, *, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(family.decoder_names)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cfg, self.family, self.dtype = cfg, family, dtype
        self.stages: tuple[Stage, ...] = (Stage(range(cfg.num_layers), has_embedding=True, has_head=True),)
        #: What this rank holds of each parameter, by name; nothing where it is all of each.
        self.held: Mapping[str, Held] = {}
        #: Which of how many equal parts of the sequence's rows the residual stream holds here.
        self.rows = (0, 1)
        #: Whether attention projects those rows alone (isp); else it gathers all of them first.
        self.projects_own_rows = False
        #: Whether a backward pass may come in several calls of autograd: what is recomputed is kept for all of them.
        self.backward_in_parts = False
        #: Called with the embedding, each block, the last norm and the head before they compute: weights may be on
        #: their way.
        self.before_part: Callable[[nn.Module], None] | None = None
        #: Ids that end a text, besides the tokenizer's own: they come and go with the weights.
        self.ending: frozenset[int] = frozenset()

        scale = cfg.embed_grad_scale
        self.embedding: Embedding | None = Embedding(cfg.vocab_size, cfg.hidden_size, grad_scale=scale, **factory)
        # Not a list, which would number a stage's blocks from 0: names in a checkpoint are the whole model's.
        self.blocks = nn.ModuleDict(
            {str(number): Block(cfg, family, number, **factory) for number in range(cfg.num_layers)}
        )
        self.norm: Norm | None = None if cfg.apply_post_layer_norm else make_norm(cfg, cfg.hidden_size, **factory)
        tied_to = self.embedding if cfg.tie_word_embeddings else None
        self.head: Head | None = Head(
            cfg.hidden_size, cfg.vocab_size, norm_head=cfg.norm_head, grad_scale=scale, tied_to=tied_to, **factory
        )
        gates = (module for module in self.modules() if isinstance(module, Gate))
        #: Whether a forward pass in training takes random numbers.
        self.draws = bool(cfg.drop_rate or cfg.attn_drop_rate) or any(gate.draws for gate in gates)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def stage(self) -> Stage:
        """The only one of its stages.

        Raises:
            ValueError: there are several.
        """
        if len(self.stages) > 1:
            raise ValueError("a model of several stages must be told which of them to run")
        return self.stages[0]

    @property
    def has_every_stage(self) -> bool:
        """Whether these are all stages of the model."""
        return sum(len(stage.blocks) for stage in self.stages) == self.cfg.num_layers

    @property
    def has_every_expert(self) -> bool:
        """Whether these are all experts of its layers."""
        mixtures = (block.mlp for block in self.blocks.values() if isinstance(block, Block))
        return all(
            len(mlp.moe_layer.wrapped_experts) == self.cfg.num_experts
            for mlp in mixtures
            if isinstance(mlp, MixtureMLP)
        )

    @property
    def stream_dtype(self) -> torch.dtype:
        """Of the residual stream, which one stage hands to the next."""
        return accumulation_dtype(self.dtype) if self.cfg.residual_in_fp32 else self.dtype

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        labels: Tensor | None = None,
        max_seqlen: int | None = None,
        label_smoothing: float = 0.0,
        draws: Draws | None = None,
        moe_loss: Tensor | None = None,
        stage: Stage | None = None,
    ) -> ModelOutput:
        """One packed sequence.

        Args:
            input_ids: [T] int64. A stage without embedding takes the hidden states of the one before,
                [T, hidden_size] in `stream_dtype`, T being the rows that are held here.
            positions: [T] int64, each token's place in its own document.
            cu_seqlens: [n + 1] int32, where the n documents begin and end; the last is T.
            labels: [T] int64, the token after each; -100 is ignored. None asks for logits. A stage without head
                passes over them.
            max_seqlen: length of the longest document, if known (saves a device synchronisation).
            label_smoothing: in [0, 1).
            draws: of this micro-batch, in training; None has torch's own generator choose them.
            moe_loss: scalar, the balance losses of the stages before, to which this one's are added.
            stage: which of `stages`; None where there is one.
        """
        stage = stage or self.stage
        documents = Documents(cu_seqlens, max_seqlen)
        hidden, moe_loss = self._run(stage, input_ids, positions, documents, None, None, draws, moe_loss)
        if not stage.has_head or self.head is None:
            return ModelOutput(hidden=hidden, moe_loss=moe_loss)
        if labels is None:
            return ModelOutput(logits=self.head.logits(hidden), moe_loss=moe_loss)
        # Not by way of logits, which for a whole sequence are the largest tensor of the model.
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

    def _projected(self, of_tokens: Any) -> Any:
        """Of something of each token [T], that of those which attention's projections give; all else as it is."""
        if not self.projects_own_rows or not isinstance(of_tokens, Tensor):
            return of_tokens
        part, parts = self.rows
        return of_tokens.chunk(parts)[part]

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        cache: AttentionCache | None = None,
        rotation: Rotary | None = None,
        stage: Stage | None = None,
    ) -> Tensor:
        """What the head reads, or the next stage: [T, hidden_size].

        Args:
            input_ids: [T] int64; of a stage without embedding the hidden states of the one before.
            positions: [T] int64.
            documents: where each begins.
            cache: keys and values of earlier tokens, for generation.
            rotation: of these tokens; None is the usual one at their positions.
            stage: which of `stages`; None where there is one.
        """
        return self._run(stage or self.stage, input_ids, positions, documents, cache, rotation, None, None)[0]

    def _run(
        self,
        stage: Stage,
        x: Tensor,
        positions: Tensor,
        documents: Documents,
        cache: AttentionCache | None,
        rotation: Rotary | None,
        draws: Draws | None,
        moe_loss: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and ``moe_loss`` with the blocks' balance losses added."""
        if not self.training:
            draws = None
        elif draws is None and self.draws:
            if self.held:
                raise ValueError("ranks that share a model must be given their draws, or each would make its own")
            draws = Draws.from_torch()
        if stage.has_embedding:
            self.prepare(self.embedding)
            x = self._embed(x, draws)
        if rotation is None:
            base = self._stretched_base(documents)
            rotation = self.rotation(self._projected(positions), self._projected(base))
        recomputed = stage.recomputed(float(self.cfg.checkpoint))
        for number in stage.blocks:
            block = self.blocks[str(number)]
            self.prepare(block)
            of_layer = None if draws is None else draws.layer(number)
            if number in recomputed and torch.is_grad_enabled() and cache is None:
                x, balance = self._recomputed(block, x, rotation, documents, None, of_layer)
            else:
                x, balance = block(x, rotation, documents, cache, of_layer)
            if balance is not None:
                # One after the other, as stages add them up: a cut changes no bit.
                moe_loss = balance if moe_loss is None else moe_loss + balance
        if not stage.has_head:
            return x, moe_loss
        self.prepare(self.norm, self.head, None if self.head is None else self.head.tied_to)
        return x if self.norm is None else self.norm(x), moe_loss

    def prepare(self, *parts: nn.Module | None) -> None:
        """See that parts have their weights."""
        if self.before_part is not None:
            for part in parts:
                if part is not None:
                    self.before_part(part)

    def _recomputed(self, block: nn.Module, *args: Any) -> Any:
        """A block that keeps only its input. There is no random state to preserve: it draws by its place."""
        if self.backward_in_parts:
            return recompute_once(block, *args)
        return recompute_in_backward(block, *args, use_reentrant=False, preserve_rng_state=False)

    def _embed(self, input_ids: Tensor, draws: Draws | None) -> Tensor:
        """input_ids [T] -> the residual stream before the first block [T, hidden_size]."""
        x: Tensor = self.embedding(input_ids)  # type: ignore[misc]
        if self.cfg.drop_rate and draws is not None:
            x = draws.layer(0).dropout(x, self.cfg.drop_rate, "embedding")
        return x.to(self.stream_dtype)


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

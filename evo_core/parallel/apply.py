"""From a model for one process to what one rank of many holds of it: the one page that applies a layout.

    build on the meta device -> replace what the tensor ranks share -> memory -> first weights, or loaded ones

Modules are replaced under their own names by ones that hold a part and talk to the ranks that hold the others; the
decoder does not know of it. What the rank then holds of each parameter is written down as the model's `held`, which
initial weights, gradient sums, the norm, checkpoints and parity read: nothing else knows how a tensor is cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evo_core.config.families import SHIPPED
from evo_core.model.build import build_model
from evo_core.model.cutting import allocate
from evo_core.model.decoder import Attention, Decoder
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import MixtureMLP
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.tensor.embedding import HiddenEmbedding, VocabularyEmbedding
from evo_core.parallel.tensor.exchange import Exchange
from evo_core.parallel.tensor.experts import PartsDispatch, RouterLinear
from evo_core.parallel.tensor.head import ParallelHead
from evo_core.parallel.tensor.linear import ColumnLinear, RowLinear
from evo_core.parallel.tensor.own_type import cut_own_type
from evo_core.parallel.tensor.pieces import Pieces, head_rows
from evo_core.placement import Held


def build_parallel(
    model_cfg: Any,
    mesh: Mesh,
    device: torch.device | str,
    *,
    mode: str = "mtp",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """What this rank holds of the model that a `model` block describes, its weights uninitialised.

    Args:
        mode: mtp, msp or fsp; nothing where the tensor axis has one rank.
        dtype: of the weights; None takes the one of the block.

    Raises:
        ConfigError: the model cannot be cut so.
    """
    if mesh.tensor.size == 1:
        return build_model(model_cfg, device=device, dtype=dtype)
    # A class of a user's own may fill buffers when it is made: it is made whole, and then cut.
    is_own = model_cfg.model_type not in SHIPPED
    model = build_model(model_cfg, device=device if is_own else "meta", dtype=dtype)
    parallelize(model, mesh, mode)
    allocate(model, device)
    return model


def parallelize(model: nn.Module, mesh: Mesh, mode: str = "mtp") -> None:
    """Replace, in place, the modules of a model that the tensor ranks of a mesh share, and set its `held`.

    Args:
        model: a decoder on the meta device, so that no rank ever holds all of it, or one of a user's own type.
        mode: mtp, msp or fsp; of a user's own type always mtp.

    Raises:
        ConfigError: it cannot be cut.
    """
    if mesh.tensor.size == 1:
        return
    if not isinstance(model, Decoder):
        cut_own_type(model, mesh)
        return
    _TensorParallel(model, Exchange.of(mode, mesh.tensor), Pieces(mesh)).apply()


class _TensorParallel:
    """Cuts one decoder."""

    def __init__(self, model: Decoder, exchange: Exchange, pieces: Pieces) -> None:
        self.model, self.exchange, self.pieces = model, exchange, pieces
        self.size = exchange.axis.size
        self._held: dict[int, Held] = {}

    def apply(self) -> None:
        """Replace modules from the embedding to the head, then record what is held."""
        model, exchange = self.model, self.exchange
        if model.embedding is not None:
            self._cut_embedding()
        blocks: Any = model.blocks.values()
        for block in blocks:
            self._cut_attention(block.attention)
            self._cut_feed_forward(block.mlp)
        if model.head is not None:
            self._cut_head()
        if exchange.by_rows:
            model.rows = (exchange.axis.rank, exchange.axis.size)
        # What is left is whole on each rank. With the rows shared out each sees a part of its gradient.
        model.held = {
            name: self._held.get(id(parameter)) or self.pieces.whole(parameter.shape, partial=exchange.by_rows)
            for name, parameter in model.named_parameters()
        }

    def _cut_embedding(self) -> None:
        model, old = self.model, self.model.embedding
        assert old is not None
        vocabulary, hidden = old.weight.shape
        settings = {"grad_scale": old.grad_scale, **_factory(old.weight)}
        if model.cfg.embed_split_hidden and not model.cfg.tie_word_embeddings:
            model.embedding = HiddenEmbedding(vocabulary, hidden // self.size, self.exchange, **settings)
            self._note(model.embedding.weight, self.pieces.even((vocabulary, hidden), 1))
            return
        here = vocabulary // self.size
        first = here * self.exchange.axis.rank
        model.embedding = VocabularyEmbedding(here, hidden, self.exchange, first=first, **settings)
        self._note(model.embedding.weight, self.pieces.even((vocabulary, hidden), 0))

    def _cut_head(self) -> None:
        model, old = self.model, self.model.head
        assert old is not None
        cfg = model.cfg
        model.head = ParallelHead(
            cfg.hidden_size,
            cfg.vocab_size,
            self.exchange,
            gathers_logits=not cfg.parallel_output,
            norm_head=old.norm_head,
            grad_scale=old.grad_scale,
            tied_to=model.embedding if old.is_tied else None,
            device="meta",
            dtype=model.dtype,
        )
        if not old.is_tied:
            self._note(model.head.weight, self.pieces.even((cfg.vocab_size, cfg.hidden_size), 0))

    def _cut_attention(self, attention: Attention) -> None:
        cfg, layout = self.model.cfg, attention.layout
        heads, kv_heads, width = cfg.num_attention_heads, cfg.num_kv_attention_heads, cfg.head_dim
        of_each: Any = [head_rows(layout, heads, kv_heads, width, t, self.size) for t in range(self.size)]
        if layout == "split":
            for name, rows in zip("qkv", zip(*of_each, strict=True), strict=True):
                setattr(attention, name, self._column(getattr(attention, name), rows))
        else:
            attention.qkv = self._column(attention.qkv, of_each)
        attention.out = self._row(attention.out)
        if attention.qk_norm:  # of each head alike, so that a rank sees the gradient of its own heads
            for norm in (attention.q_norm, attention.k_norm):
                for parameter in norm.parameters():
                    self._note(parameter, self.pieces.whole(parameter.shape, partial=True))

    def _cut_feed_forward(self, mlp: MLP | MixtureMLP) -> None:
        if isinstance(mlp, MLP):
            for name in ("gate", "up") if mlp.gated else ("up",):
                setattr(mlp, name, self._column(getattr(mlp, name)))
            mlp.down = self._row(mlp.down)
            return
        if mlp.residual_mlp is not None:
            self._cut_feed_forward(mlp.residual_mlp)
        layer, router = mlp.moe_layer, mlp.moe_layer.gate.wg
        layer.gate.wg = RouterLinear(
            router.in_features, router.out_features, self.exchange, bias=False, **_factory(router.weight)
        )
        layer.dispatch = PartsDispatch(self.exchange)
        experts: Any = layer.experts["wrapped_experts"]
        for expert in experts:
            self._cut_expert(expert)

    def _cut_expert(self, expert: MLP) -> None:
        """An expert's parts, between which nothing is exchanged: the dispatch does it for all experts together."""
        for name in ("gate", "up") if expert.gated else ("up",):
            setattr(expert, name, self._part(getattr(expert, name), 0))
        expert.down = self._part(expert.down, 1)

    def _part(self, old: Linear, dim: int) -> Linear:
        """Equal parts of a layer without a bias, along the outputs (0) or the inputs (1)."""
        held = self.pieces.even(old.weight.shape, dim)
        outputs, inputs = held.placement.local_shape
        new = Linear(inputs, outputs, bias=False, **_factory(old.weight))
        self._note(new.weight, held)
        return new

    def _column(self, old: Linear, of_each: Any = None) -> ColumnLinear:
        """Some outputs of a layer: equal parts in their order, or the rows named for each rank."""

        def held(parameter: Tensor) -> Held:
            shape = parameter.shape
            return self.pieces.even(shape, 0) if of_each is None else self.pieces.rows(shape, of_each)

        weight = held(old.weight)
        new = ColumnLinear(
            old.in_features,
            weight.placement.local_shape[0],
            self.exchange,
            bias=old.bias is not None,
            **_factory(old.weight),
        )
        self._note(new.weight, weight)
        if old.bias is not None and new.bias is not None:
            self._note(new.bias, held(old.bias))
        return new

    def _row(self, old: Linear) -> RowLinear:
        """Some inputs of a layer."""
        inputs, bias = old.in_features // self.size, old.bias is not None
        new = RowLinear(inputs, old.out_features, self.exchange, bias=bias, **_factory(old.weight))
        self._note(new.weight, self.pieces.even(old.weight.shape, 1))
        return new

    def _note(self, parameter: nn.Parameter, held: Held) -> None:
        self._held[id(parameter)] = held


def _factory(weight: Tensor) -> dict[str, Any]:
    return {"device": weight.device, "dtype": weight.dtype}

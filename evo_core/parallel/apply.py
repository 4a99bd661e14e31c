"""From a model for one process to what one rank of many holds of it: the one page that applies a layout.

    build on the meta device -> drop other stages -> replace what the ranks of a stage share -> shares of it (fsdp)
                             -> memory -> first weights, or loaded ones

Modules are replaced under their own names by ones that hold a part and talk to the ranks that hold the others; the
decoder does not know of it. What the rank then holds of each parameter is written down as the model's `held`, which
initial weights, gradient sums, the norm, checkpoints and parity read: nothing else knows how a tensor is cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evo_core.config.families import SHIPPED
from evo_core.errors import ConfigError
from evo_core.model.build import build_model
from evo_core.model.cutting import allocate, keep_stages
from evo_core.model.decoder import Attention, Decoder
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import MixtureMLP
from evo_core.parallel.experts import keep_own_experts
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.tensor.experts import PartsDispatch
from evo_core.parallel.tensor.own_type import cut_own_type
from evo_core.parallel.tensor.parts import Parts, factory
from evo_core.parallel.tensor.pieces import Pieces, head_rows
from evo_core.parallel.weight.blocks import GatheredBlocks
from evo_core.parallel.weight.gathering import Gathering


def build_parallel(
    model_cfg: Any,
    mesh: Mesh,
    device: torch.device | str,
    *,
    mode: str = "mtp",
    placing: Placing | None = None,
    overlap: bool = False,
    memory_pool: bool = False,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """What this rank holds of the model that a `model` block describes, its weights uninitialised.

    Args:
        mode: mtp, msp or fsp; nothing where the tensor axis has one rank, or the mesh is one for isp.
        placing: of the stages, where the pipeline axis has several ranks; None gives each one.
        overlap, memory_pool: with isp, how weights are fetched; see `Gathering`.
        dtype: of the weights; None takes the one of the block.

    Raises:
        ConfigError: the model cannot be cut so.
    """
    is_whole = mesh.tensor.size == mesh.pipeline.size == 1 and mesh.weights is None and mesh.experts is None
    if is_whole and not mesh.shards:
        return build_model(model_cfg, device=device, dtype=dtype)
    # A class of a user's own may fill buffers when it is made: it is made whole, and then cut.
    is_own = model_cfg.model_type not in SHIPPED
    model = build_model(model_cfg, device=device if is_own else "meta", dtype=dtype)
    parallelize(model, mesh, mode, placing, overlap=overlap, memory_pool=memory_pool)
    if mesh.shards:
        from evo_core.parallel.sharded import shard  # torch's FSDP takes half a second to import

        shard(model, mesh)
    allocate(model, device)
    return model


def parallelize(
    model: nn.Module,
    mesh: Mesh,
    mode: str = "mtp",
    placing: Placing | None = None,
    *,
    overlap: bool = False,
    memory_pool: bool = False,
) -> None:
    """Leave, in place, this rank's stages of a model, and its parts of the modules that the ranks of a stage share; set
    its `held`.

    Args:
        model: a decoder on the meta device, so that no rank ever holds all of it, or one of a user's own type.
        mode: mtp, msp or fsp; of a user's own type always mtp.
        placing: of the stages; None gives each rank of the pipeline one.
        overlap, memory_pool: with isp, how weights are fetched; see `Gathering`.

    Raises:
        ConfigError: it cannot be cut.
    """
    if not isinstance(model, Decoder):
        if mesh.pipeline.size > 1:  # each stage would train all of it, and count it once more
            raise ConfigError(f"{type(model).__name__} has no stages", key="parallel.pipeline.size", hint="set it to 1")
        if mesh.weights is not None:
            raise ConfigError(f"{type(model).__name__} has no blocks", key="parallel.tensor.mode", hint="write mtp")
        if mesh.tensor.size > 1:
            cut_own_type(model, mesh)
        return
    if mesh.pipeline.size > 1:
        placing = placing or Placing(mesh.pipeline.size)
        every = placing.cut(model.cfg.num_layers)
        keep_stages(model, [every[stage] for stage in placing.stages_of(mesh.pipeline.rank)])
    dealt = set() if mesh.experts is None else keep_own_experts(model, mesh.experts.cut)
    if mesh.weights is not None:
        gathering = Gathering(mesh.weights.cut, overlap=overlap, pool=memory_pool, prepare=model.prepare)
        parts = Parts(mesh, "isp")
        GatheredBlocks(model, parts, Pieces(mesh, gathered=True), gathering).apply()
        _share_ends(model, parts)
    elif mesh.tensor.size > 1:
        parts = Parts(mesh, mode)
        _TensorParallel(model, parts).apply()
        _share_ends(model, parts)
    elif mesh.pipeline.size > 1 or dealt:  # whole, but on the ranks of a stage alone, or on those of an expert
        pieces = Pieces(mesh)
        of_expert = Pieces(mesh, dealt=True) if dealt else pieces
        model.held = {
            name: (of_expert if p in dealt else pieces).whole(p.shape, partial=False)
            for name, p in model.named_parameters()
        }
    if mesh.ends is not None and model.cfg.tie_word_embeddings and not (placing and placing.is_v):
        _note_ends(model, mesh)


def _note_ends(model: Decoder, mesh: Mesh) -> None:
    """Record that the other end of the pipeline has the weight of the tied head too."""
    assert model.embedding is not None and mesh.ends is not None  # both ends have it
    (tied,) = (name for name, parameter in model.named_parameters() if parameter is model.embedding.weight)
    distance = mesh.ends.ranks[1 - mesh.ends.rank] - mesh.world.rank
    model.held = {**model.held, tied: model.held[tied].at_both_ends(distance)}


def _share_ends(model: Decoder, parts: Parts) -> None:
    """Replace embedding and head by what the tensor ranks share of them, then record what is held of all the model."""
    cfg, embedding, head, exchange = model.cfg, model.embedding, model.head, parts.exchange
    if parts.size > 1:
        if embedding is not None:
            by_columns = cfg.embed_split_hidden and not cfg.tie_word_embeddings
            model.embedding = parts.columns_of(embedding) if by_columns else parts.embedding(embedding)
        if head is not None:
            tied_to = model.embedding if head.is_tied else None
            model.head = parts.head(head, tied_to=tied_to, gathers_logits=not cfg.parallel_output)
        if exchange.by_rows:
            model.rows = (parts.rank, parts.size)
    # What is left is whole on each rank. With the rows shared out each sees a part of its gradient.
    model.held = parts.record(model, partial=exchange.by_rows)


class _TensorParallel:
    """Cuts the blocks of one decoder."""

    def __init__(self, model: Decoder, parts: Parts) -> None:
        self.model, self.parts, self.exchange = model, parts, parts.exchange
        self.of_expert = parts.pieces if parts.mesh.experts is None else Pieces(parts.mesh, dealt=True)

    def apply(self) -> None:
        """Replace their modules."""
        blocks: Any = self.model.blocks.values()
        for block in blocks:
            self._cut_attention(block.attention)
            self._cut_feed_forward(block.mlp)

    def _cut_attention(self, attention: Attention) -> None:
        cfg, layout, parts = self.model.cfg, attention.layout, self.parts
        heads, kv_heads, width = cfg.num_attention_heads, cfg.num_kv_attention_heads, cfg.head_dim
        of_each: Any = [head_rows(layout, heads, kv_heads, width, t, parts.size) for t in range(parts.size)]
        if layout == "split":
            for name, rows in zip("qkv", zip(*of_each, strict=True), strict=True):
                setattr(attention, name, parts.column(getattr(attention, name), rows))
        else:
            attention.qkv = parts.column(attention.qkv, of_each)
        attention.out = parts.row(attention.out)
        if attention.qk_norm:  # of each head alike, so that a rank sees the gradient of its own heads
            for norm in (attention.q_norm, attention.k_norm):
                for parameter in norm.parameters():
                    parts.note(parameter, parts.pieces.whole(parameter.shape, partial=True), parameter)

    def _cut_feed_forward(self, mlp: MLP | MixtureMLP) -> None:
        if isinstance(mlp, MLP):
            for name in ("gate", "up") if mlp.gated else ("up",):
                setattr(mlp, name, self.parts.column(getattr(mlp, name)))
            mlp.down = self.parts.row(mlp.down)
            return
        if mlp.residual_mlp is not None:
            self._cut_feed_forward(mlp.residual_mlp)
        layer = mlp.moe_layer
        layer.gate.wg = self.parts.router(layer.gate.wg)
        layer.dispatch = PartsDispatch(self.exchange, layer.dispatch)
        experts: Any = layer.wrapped_experts.values()
        for expert in experts:
            self._cut_expert(expert)

    def _cut_expert(self, expert: MLP) -> None:
        """An expert's parts, between which nothing is exchanged: the dispatch does it for all experts together."""
        for name in ("gate", "up") if expert.gated else ("up",):
            setattr(expert, name, self._part(getattr(expert, name), 0))
        expert.down = self._part(expert.down, 1)

    def _part(self, old: Linear, dim: int) -> Linear:
        """Equal parts of an expert's layer, which has no bias, along the outputs (0) or the inputs (1)."""
        held = self.of_expert.even(old.weight.shape, dim)
        outputs, inputs = held.placement.local_shape
        new = Linear(inputs, outputs, bias=False, **factory(old.weight))
        self.parts.note(new.weight, held, old.weight)
        return new

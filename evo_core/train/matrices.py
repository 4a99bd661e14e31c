"""Which parameters of a model are matrices that Muon updates: attention's projections and the MLPs' of every block."""

from __future__ import annotations

from torch import nn

from evo_core.errors import ConfigError
from evo_core.model.decoder import Attention, Decoder
from evo_core.model.ops.mlp import MLP
from evo_core.optim.muon import Matrices


def matrices_of(model: nn.Module) -> dict[str, Matrices]:
    """What each of these weights is, by its name in the model; a fused projection of queries, keys and values is three
    matrices, however its rows lie, so that an update does not depend on the family's layout.

    Embedding and head, norms, biases, routers and the weighing of a residual MLP are not among them.

    Raises:
        ConfigError: the model has none.
    """
    found = {id(weight): matrices for weight, matrices in _of_blocks(model)} if isinstance(model, Decoder) else {}
    named = {name: found[id(param)] for name, param in model.named_parameters() if id(param) in found}
    if not any(param.requires_grad for param in model.parameters() if id(param) in found):
        raise ConfigError(
            "muon updates the matrices of a decoder's blocks, and this model has none that are trained",
            key="optimizer.name",
            hint="write adamw",
        )
    return named


def _of_blocks(model: Decoder) -> list[tuple[nn.Parameter, Matrices]]:
    weights: list[tuple[nn.Parameter, Matrices]] = []
    for part in model.blocks.modules():
        if isinstance(part, Attention):
            linears = [part.q, part.k, part.v] if part.layout == "split" else []
            weights += [(linear.weight, _one(linear.weight)) for linear in (*linears, part.out)]
            if part.layout != "split":
                weights.append((part.qkv.weight, _fused(part)))
        elif isinstance(part, MLP):
            linears = [part.gate, part.up, part.down] if part.gated else [part.up, part.down]
            weights += [(linear.weight, _one(linear.weight)) for linear in linears]
    return weights


def _one(weight: nn.Parameter) -> Matrices:
    return Matrices(1, (weight.shape[0],))


def _fused(attention: Attention) -> Matrices:
    """Of a fused projection. In groups each key/value head has its query heads, its key and its value in a run."""
    heads, kv_heads, d = attention.heads, attention.kv_heads, attention.head_dim
    if attention.layout == "grouped":
        return Matrices(kv_heads, (heads // kv_heads * d, d, d))
    return Matrices(1, (heads * d, kv_heads * d, kv_heads * d))

"""First weights: drawn per parameter from (seed, name), so that no rank, layout or order changes them.

A rank that holds pieces of a tensor draws the whole one and keeps its pieces: a generator cannot begin in the middle.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evo_core.model.decoder import Decoder
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import Gate, MixtureMLP
from evo_core.model.ops.norm import Norm
from evo_core.placement import Placed, Placement

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


def init_weights(
    model: nn.Module, model_cfg: ModelConfig | Any, seed: int, placements: Mapping[str, Placement] | None = None
) -> None:
    """Draw the first weights of a model in place.

    Matrices are normal (or with ``init_type: uniform`` uniform with the same deviation) with the standard
    deviations of the block; projections onto the residual stream are divided by ``sqrt(2 * (layer + 1))``
    with ``use_scaled_init``. Biases are 0, norms 1. A router starts like the matrices into the MLP.

    The numbers are drawn in float32 on the CPU and then rounded to the parameter's dtype, so every dtype and
    device starts from the same ones. A model type of one's own is asked to do it by its method
    ``init_weights(seed)``.

    Args:
        placements: by the parameter's name, what this rank holds of those that it does not hold whole.

    Raises:
        ValueError: a parameter has not the local shape of its placement.
    """
    if not isinstance(model, Decoder):
        own_init: Any = model.init_weights
        own_init(seed)
        return
    uniform = model_cfg.init_type == "uniform"
    placements = placements or {}
    for name, parameter, std in deviations(model, model_cfg):
        draw(parameter, std, seed=seed, name=name, uniform=uniform, placement=placements.get(name))
    fill_constants(model)


def draw(
    parameter: Tensor,
    std: float,
    *,
    seed: int,
    name: str,
    uniform: bool = False,
    placement: Placement | None = None,
) -> None:
    """Fill one parameter with zero-mean numbers of deviation ``std`` that depend on (seed, name) alone.

    Args:
        parameter: of any shape, dtype and device; the numbers are drawn in float32 on the CPU.
        name: of the parameter in the whole model.
        uniform: uniform numbers of that deviation, not normal ones.
        placement: which pieces of a whole tensor it holds; None is all of it.

    Raises:
        ValueError: it has not the local shape of its placement.
    """
    shape = tuple(parameter.shape) if placement is None else placement.shape
    values = drawn(shape, std, seed=seed, name=name, uniform=uniform)
    with torch.no_grad():
        if placement is None:
            parameter.copy_(values)
        else:
            Placed(parameter, placement).fill(values)


def drawn(shape: tuple[int, ...], std: float, *, seed: int, name: str, uniform: bool = False) -> Tensor:
    """The numbers of `draw` for a whole parameter: [*shape] float32, on the CPU."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(shape, dtype=torch.float32)
    if uniform:
        bound = math.sqrt(3) * std
        return values.uniform_(-bound, bound, generator=generator)
    return values.normal_(0, std, generator=generator)


@torch.no_grad()
def fill_constants(model: Decoder) -> None:
    """Set what is not drawn: norms to 1, biases to 0."""
    for module in model.modules():
        if isinstance(module, Norm):
            module.weight.fill_(1)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()


def deviations(model: Decoder, cfg: ModelConfig) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Each matrix of a decoder that is drawn: its name, itself and the standard deviation."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, std in _deviations(model, cfg):
        yield names[id(parameter)], parameter, std


def _deviations(model: Decoder, cfg: ModelConfig) -> Iterator[tuple[nn.Parameter, float]]:
    """Each matrix of the decoder with its standard deviation."""
    if model.embedding is not None:
        yield model.embedding.weight, cfg.embedding_init_std
    if model.head is not None and not model.head.is_tied:
        yield model.head.weight, cfg.out_head_init_std
    blocks: Any = model.blocks.items()
    for name, block in blocks:
        # Each layer adds to the residual stream; the later ones less, so that the sum stays of the size of its parts.
        depth = math.sqrt(2 * (int(name) + 1)) if cfg.use_scaled_init else 1.0
        attention = block.attention
        for linear in (attention.q, attention.k, attention.v) if attention.layout == "split" else (attention.qkv,):
            yield linear.weight, cfg.attn_wqkv_init_std
        yield attention.out.weight, cfg.attn_other_init_std / depth
        for module in block.mlp.modules():
            if isinstance(module, MLP):
                for linear in (module.gate, module.up) if module.gated else (module.up,):
                    yield linear.weight, cfg.ffn_uplayer_init_std
                yield module.down.weight, cfg.ffn_other_init_std / depth
            elif isinstance(module, Gate):
                yield module.wg.weight, cfg.ffn_uplayer_init_std
            elif isinstance(module, MixtureMLP) and module.residual_mlp is not None:
                yield module.coefficient.weight, cfg.ffn_uplayer_init_std

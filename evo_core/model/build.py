"""From a `model` block to a module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evo_core.errors import ConfigError
from evo_core.model.cutting import all_stages
from evo_core.model.decoder import Decoder
from evo_core.model.dtypes import allow_tf32, torch_dtype
from evo_core.model.families import FAMILIES
from evo_core.model.registry import model_type
from evo_core.placement import placements_of

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


def build_model(
    model_cfg: ModelConfig | Any, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """The model that a `model` block describes, its weights uninitialised.

    For the shipped families this is a `Decoder`; for a registered type what its builder returns. Dtype tf32
    allows TF32 matrix products in the whole process, any other dtype forbids them.

    Args:
        device: "meta" makes a model without memory, to count or to load into.
        dtype: of the weights; None takes the one of the block.

    Raises:
        ConfigError: unknown model type, impossible shape.
    """
    allow_tf32(model_cfg.dtype if dtype is None else dtype)
    builder = model_type(model_cfg.model_type).load_builder()
    return builder(model_cfg, device=device, dtype=dtype or torch_dtype(model_cfg.dtype))


def build_decoder(model_cfg: ModelConfig, *, device: torch.device | str, dtype: torch.dtype) -> Decoder:
    """The builder of the shipped families."""
    _check(model_cfg)
    return Decoder(model_cfg, FAMILIES[model_cfg.model_type], device=device, dtype=dtype)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters (elements) of the whole model, whatever part of it is here, each counted once."""
    cut, parameters = placements_of(model), all_stages(model).named_parameters()
    return sum(math.prod(cut[name].shape) if name in cut else parameter.numel() for name, parameter in parameters)


def _check(cfg: ModelConfig) -> None:
    """What would build another model than the block says, where no configuration file was checked before."""
    heads, kv_heads = cfg.num_attention_heads, cfg.num_kv_attention_heads
    if cfg.head_dim % 2 or (cfg.hidden_size % heads and cfg.head_dim == cfg.hidden_size // heads):
        message = f"hidden_size {cfg.hidden_size} does not divide into {heads} heads of even width"
        raise ConfigError(message, key="model.num_attention_heads")
    if heads % kv_heads:
        message = f"{heads} query heads cannot share {kv_heads} key and value heads"
        raise ConfigError(message, key="model.num_kv_attention_heads")
    if cfg.residual_in_fp32 and cfg.apply_post_layer_norm:
        message = "norms after each sum leave no residual stream to keep in float32"
        raise ConfigError(message, key="model.residual_in_fp32", hint="set it to false")

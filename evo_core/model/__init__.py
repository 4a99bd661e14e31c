"""The model: one decoder, the families it takes the shape and names of, and the registry of model types.

Importing this package imports no torch: the planner asks the registry which model types exist, and a
public name pulls in what it needs when it is first used.

    build_model(cfg.model, device="cpu")    a Decoder with uninitialised weights
    init_weights(model, cfg.model, seed)    its first weights, independent of rank and layout
    count_parameters(model)
    attention_kernel(device, dtype)         which attention runs here, and why
    register_model_type(name, ...)          a model type of one's own (docs/models.md)
    draw, Head, ModelOutput                 what such a type is made of, and linear_cross_entropy
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo_core.model.build import build_model, count_parameters
    from evo_core.model.compiled import compile_blocks
    from evo_core.model.decoder import Decoder, ModelOutput
    from evo_core.model.init import draw, init_weights
    from evo_core.model.ops.attention import attention_kernel
    from evo_core.model.ops.head import Head
    from evo_core.model.ops.loss import linear_cross_entropy
    from evo_core.model.registry import known_model_types, model_type, register_model_type

_HOME = {
    "build_model": "build",
    "compile_blocks": "compiled",
    "count_parameters": "build",
    "Decoder": "decoder",
    "ModelOutput": "decoder",
    "draw": "init",
    "init_weights": "init",
    "attention_kernel": "ops.attention",
    "Head": "ops.head",
    "linear_cross_entropy": "ops.loss",
    "known_model_types": "registry",
    "model_type": "registry",
    "register_model_type": "registry",
}

__all__ = [
    "Decoder",
    "Head",
    "ModelOutput",
    "attention_kernel",
    "build_model",
    "compile_blocks",
    "count_parameters",
    "draw",
    "init_weights",
    "known_model_types",
    "linear_cross_entropy",
    "model_type",
    "register_model_type",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

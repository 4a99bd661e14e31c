"""Writing InternEvo's folder for one rank: ``model_tp0_pp0.pt``, a file per expert, ``model_config.pt``."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_core.checkpoint.generation_settings import write_generation
from evo_core.config import ModelConfig
from evo_core.errors import CheckpointError
from evo_core.model.dtypes import torch_dtype
from evo_core.weights.internevo.folder import MODEL_CONFIG
from evo_core.weights.lazy import Lazy
from evo_core.weights.plain import PlainForm
from evo_core.weights.source import Weights
from evo_core.weights.tokenizer_files import copy_tokenizer

log = logging.getLogger(__name__)

FAMILIES = ("INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2", "INTERNLM_MoE")

_SETTINGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_kv_attention_heads",
    "vocab_size",
    "mlp_ratio",
    "multiple_of",
    "no_bias",
    "use_swiglu",
    "norm_type",
    "layer_norm_epsilon",
    "apply_post_layer_norm",
    "norm_head",
    "embed_grad_scale",
    "residual_in_fp32",
    "rope_base",
    "qk_interleaved",
    "max_position_embeddings",
    "use_dynamic_ntk_rope",
    "num_experts",
    "moe_use_residual",
    "moe_type",
)
_EXPERT = re.compile(r"blocks\.(\d+)\.mlp\.moe_layer\.experts\.wrapped_experts\.(\d+)\.")


def write_internevo(weights: Weights, folder: Path) -> None:
    """Write a folder that InternEvo loads at tensor and pipeline size 1.

    Args:
        folder: an empty one.

    Raises:
        CheckpointError: InternEvo has no such model.
    """
    cfg = weights.model
    _refuse(cfg)
    if cfg.num_experts > 1:
        routing = json.dumps(cfg.moe.model_dump())
        log.warning(
            "InternEvo keeps how tokens are routed in a run's configuration, not with the weights: to read them back, "
            "name one with --config FILE that has moe: %s",
            routing,
        )
    files: dict[str, dict[str, Lazy]] = {"model_tp0_pp0.pt": {}}
    for name, tensor in PlainForm(cfg).from_plain(weights.tensors).items():
        match = _EXPERT.match(name)
        file = f"model_moe_layer{match[1]}_expert{match[2]}_tp0.pt" if match else "model_tp0_pp0.pt"
        files.setdefault(file, {})[name] = tensor
    for file, tensors in files.items():
        _save(tensors, folder / file)
    _write(_settings(cfg), folder / MODEL_CONFIG)
    write_generation(folder, weights.generation)
    if weights.tokenizer is not None:
        copy_tokenizer(weights.tokenizer, folder)


def _settings(cfg: ModelConfig) -> dict[str, Any]:
    settings = {name: getattr(cfg, name) for name in _SETTINGS}
    layout = {"num_chunks": 1, "checkpoint": 0.0, "embed_split_hidden": True}
    return settings | layout | {"dtype": torch_dtype(cfg.dtype)}


def _refuse(cfg: ModelConfig) -> None:
    hint = "convert to evo or hf"
    if cfg.model_type not in FAMILIES:
        raise CheckpointError(f"InternEvo has no model type {cfg.model_type}", hint=hint)
    unknown = {
        "qk_norm": cfg.qk_norm,
        "apply_post_layer_norm": cfg.apply_post_layer_norm and cfg.model_type in ("INTERNLM", "INTERNLM_MoE"),
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "rope_scaling": cfg.rope_scaling is not None,
        "dynamic_ntk_factor": cfg.use_dynamic_ntk_rope and cfg.dynamic_ntk_factor != 1,
        "head_dim": cfg.head_dim * cfg.num_attention_heads != cfg.hidden_size,
    }
    for name in unknown:
        if unknown[name]:
            raise CheckpointError(f"InternEvo has no place for model.{name}", hint=hint)


def _save(tensors: Mapping[str, Lazy], path: Path) -> None:
    """Write a state dictionary; each tensor waits in a mapped file until all are there, since torch.save takes all."""
    _write({name: _on_disk(tensor, path.with_name(f".{path.name}.part")) for name, tensor in tensors.items()}, path)


def _on_disk(tensor: Lazy, scratch: Path) -> Tensor:
    """The tensor in memory that the system may write out: a file without a name, gone when the tensor is."""
    size = math.prod(tensor.shape)
    mapped = torch.from_file(str(scratch), shared=True, size=size, dtype=tensor.dtype).view(tensor.shape)
    scratch.unlink()
    return mapped.copy_(tensor.read())


def _write(content: Any, path: Path) -> None:
    torch.save(content, path)  # by name: into an open file it would copy each tensor first

"""The shape of an InternEvo model: what its ``model_config.pt`` states, checked against the tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evo_core.errors import CheckpointError
from evo_core.weights.job import width_of_mlp
from evo_core.weights.lazy import Lazy
from evo_core.weights.source import dtype_setting

_LAYOUT = ("num_chunks", "checkpoint", "parallel_output", "embed_split_hidden", "mlp_layer_fusion", "use_flash_attn")
"""How that run was laid out, which is nothing of the model's."""

log = logging.getLogger(__name__)


def shape_of(tensors: Mapping[str, Lazy], stated: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a `model` block, with the top-level ones that belong to it.

    What the tensors say goes before what is stated.

    Raises:
        CheckpointError: the tensors are of no known family, or a number of heads is missing.
    """
    from evo_core.config import ModelConfig

    embedding = tensors.get("embedding.weight", tensors.get("tok_embeddings.weight"))
    gate = next((t for name, t in tensors.items() if name.endswith("w1.weight")), None)
    family = _family(tensors, folder)
    # With norms after attention and MLP there is none at the end. INTERNLM's blocks never look at the setting.
    post_norm = bool(stated.get("apply_post_layer_norm")) and family in ("INTERNLM2_PUBLIC", "LLAMA2")
    norm = tensors.get("layers.0.ffn_norm.weight" if post_norm else "norm.weight")
    if embedding is None or gate is None or norm is None:
        raise CheckpointError(
            "lacks the embedding, the MLPs or the last norm: not all pipeline stages are there", file=folder
        )
    if "num_attention_heads" not in stated:
        raise CheckpointError("does not say the number of heads (num_attention_heads)", file=folder)
    layers = [int(match[2]) for name in tensors if (match := re.match(r"(blocks|layers)\.(\d+)\.", name))]
    known = {*ModelConfig.model_fields, "adapt_hf"} - {*_LAYOUT, "model_type", "dtype"}
    unknown = sorted(set(stated) - known - {*_LAYOUT, "model_type", "dtype", "device", "deepnorm"})
    if unknown:
        log.warning("%s: settings of the model that mean nothing here: %s", folder, ", ".join(unknown))
    settings = {name: value for name, value in stated.items() if name in known and value is not None}
    settings |= {
        "model_type": family,
        "apply_post_layer_norm": post_norm,
        "num_layers": max(layers) + 1,
        "vocab_size": embedding.shape[0],
        "hidden_size": norm.shape[0],
        **width_of_mlp(norm.shape[0], gate.shape[0]),
        "no_bias": not any(name.endswith(("qkv.bias", "wq.bias")) for name in tensors),
        "dtype": dtype_setting(tensors, folder),
    }
    experts = [int(match[1]) for name in tensors if (match := re.search(r"wrapped_experts\.(\d+)\.", name))]
    if experts:
        settings["num_experts"] = max(experts) + 1
        settings["moe_use_residual"] = any(".residual_mlp." in name for name in tensors)
        if "moe" not in stated:
            log.warning(
                "%s does not say how tokens are routed: the defaults of the moe block are taken (name a configuration "
                "with the run's `moe` block: --config FILE)",
                folder,
            )
    norms = {tensor.dtype for name, tensor in tensors.items() if "norm" in name}
    settings["use_fp32_norm"] = norms == {torch.float32} and settings["dtype"] != "torch.float32"
    return settings


def _family(tensors: Mapping[str, Lazy], folder: Path) -> str:
    """Which family has such names."""
    if any(".moe_layer." in name for name in tensors):
        return "INTERNLM_MoE"
    for part, family in ((".mixer.Wqkv.", "INTERNLM"), (".attention.wqkv.", "INTERNLM2_PUBLIC")):
        if any(part in name for name in tensors):
            return family
    if any(".attention.wq." in name for name in tensors):
        return "LLAMA2"
    raise CheckpointError("has the tensors of no family that is read here", file=folder)

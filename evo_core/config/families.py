"""What each model type takes for the settings of ``model`` that a configuration leaves out."""

from __future__ import annotations

from typing import Any

_INTERNLM_STDS = {
    "embedding_init_std": 0.0052,
    "attn_wqkv_init_std": 0.006,
    "attn_other_init_std": 0.006,
    "ffn_uplayer_init_std": 0.006,
    "ffn_other_init_std": 0.006,
    "out_head_init_std": 0.0052,
}
_WIDE_STDS = dict.fromkeys(_INTERNLM_STDS, 0.02)

_FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM": {"rope_base": 10000.0, "qk_interleaved": False, **_INTERNLM_STDS},
    "INTERNLM2_PUBLIC": {"rope_base": 10000.0, "qk_interleaved": False, **_WIDE_STDS},
    # Meta's checkpoints hold query and key rows in neighbouring pairs.
    "LLAMA2": {"rope_base": 10000.0, "qk_interleaved": True, **_WIDE_STDS},
    "LLAMA3": {"rope_base": 500000.0, "qk_interleaved": False, "no_bias": True, **_WIDE_STDS},
    "QWEN3": {
        "rope_base": 1e6,
        "qk_interleaved": False,
        "no_bias": True,
        "qk_norm": True,
        "layer_norm_epsilon": 1e-6,
        **_WIDE_STDS,
    },
    "INTERNLM_MoE": {"rope_base": 10000.0, "qk_interleaved": False, **_INTERNLM_STDS},
}


SHIPPED = tuple(_FAMILIES)
"""The model types whose block is ``ModelConfig``."""


def family_defaults(model_type: object) -> dict[str, Any]:
    """The usual values of a model type; those of INTERNLM for a name that is not known."""
    return _FAMILIES.get(str(model_type), _FAMILIES["INTERNLM"])

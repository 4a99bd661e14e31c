"""``config.json`` of a Hugging Face folder, from and to a `model` block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.errors import CheckpointError
from evo_core.weights.hf.names import ARCHITECTURES, INTERNLM, INTERNLM2, INTERNLM_MOE, LLAMA, QWEN3
from evo_core.weights.job import width_of_mlp

if TYPE_CHECKING:
    from evo_core.config import ModelConfig
    from evo_core.weights.hf.names import Architecture

_OLD = (INTERNLM, INTERNLM_MOE)
"""Classes that say in `rotary` how positions turn."""


def architecture_of(config: Mapping[str, Any], file: Path) -> Architecture:
    """The class that a config.json names.

    Raises:
        CheckpointError: it is none of those that are read here.
    """
    names, hf_type = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{names!r} is no list of names", file=file, key="architectures")
    by_type = {architecture.hf_type: architecture for architecture in ARCHITECTURES.values()}
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and isinstance(hf_type, str) and hf_type in by_type:
        return by_type[hf_type]
    what = ", ".join(names) or hf_type or "no architecture"
    remote = "; it brings code of its own, which is not run" if config.get("auto_map") else ""
    hint = (
        f"read are {', '.join(ARCHITECTURES)}; a network of another kind is a class of your own, registered as "
        "model_type: package.module:Class (docs/models.md)"
    )
    raise CheckpointError(f"{what} is not supported{remote}", file=file, hint=hint)


def model_settings(config: Mapping[str, Any], architecture: Architecture, file: Path) -> dict[str, Any]:
    """The settings of a `model` block that a config.json means; what it leaves out is as the class has it.

    Raises:
        CheckpointError: it means something that our decoder does not do.
    """
    _refuse(config, architecture, file)

    def size(name: str, default: int | None = None) -> int:
        return _size(config, name, file, default)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    settings: dict[str, Any] = {
        "model_type": architecture.model_type,
        "num_layers": size("num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_attention_heads": size("num_key_value_heads", heads),
        "head_dim": size("head_dim", 128 if architecture is QWEN3 else max(hidden // heads, 1)),
        "vocab_size": size("vocab_size"),
        **width_of_mlp(hidden, size("intermediate_size")),
        "no_bias": not _biased(config, architecture),
        "layer_norm_epsilon": _or(config.get("rms_norm_eps"), 1e-6),
        "qk_interleaved": False,
        "max_position_embeddings": size("max_position_embeddings", 32768 if architecture is QWEN3 else 2048),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        **_rotary_settings(config, architecture, file),
    }
    if architecture is LLAMA and ("rope_scaling" in settings or settings["rope_base"] == 500000):
        settings["model_type"] = "LLAMA3"
    if architecture is INTERNLM_MOE:
        settings["num_experts"] = size("num_experts")
        settings |= {name: config[name] for name in ("moe_use_residual", "moe_type", "moe") if name in config}
    return settings


def config_of(
    cfg: ModelConfig, architecture: Architecture, *, dtype: str, max_position: int, special: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json of a model.

    Args:
        dtype: of the tensors, "bfloat16".
        max_position: longest text it is for, tokens.
        special: ``bos_token_id`` and the like.

    Raises:
        CheckpointError: the class cannot express the model.
    """
    _refuse_model(cfg, architecture)
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": architecture.hf_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.mlp_hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_position,
        "initializer_range": 0.02,
        "rms_norm_eps": cfg.layer_norm_epsilon,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,
        **special,
    }
    dynamic = {"type": "dynamic", "factor": cfg.dynamic_ntk_factor}
    if architecture in _OLD:
        rotary: dict[str, Any] = {"base": cfg.rope_base, "type": "dynamic" if cfg.use_dynamic_ntk_rope else "origin"}
        if cfg.use_dynamic_ntk_rope and cfg.dynamic_ntk_factor != 1:
            rotary["scaling_factor"] = cfg.dynamic_ntk_factor
        config |= {"bias": not cfg.no_bias, "rotary": rotary}
    else:
        config |= {"num_key_value_heads": cfg.num_kv_attention_heads, "rope_theta": cfg.rope_base}
        config["rope_scaling"] = dynamic if cfg.use_dynamic_ntk_rope else _scaling_of(cfg)
    if architecture is INTERNLM2:
        config["bias"] = not cfg.no_bias
    if architecture in (LLAMA, QWEN3):
        config |= {"attention_bias": not cfg.no_bias, "head_dim": cfg.head_dim}
    if architecture is INTERNLM_MOE:
        config |= {name: getattr(cfg, name) for name in ("num_experts", "moe_use_residual", "moe_type")}
        config["moe"] = cfg.moe.model_dump()
    return config


def _rotary_settings(config: Mapping[str, Any], architecture: Architecture, file: Path) -> dict[str, Any]:
    """rope_base, and what changes it for long texts.

    InternLM's class reads `rotary`, and where there is none stretches the base. The others' transformers 5 writes
    `rope_parameters`, older versions `rope_theta` and `rope_scaling`; a file that has both is read as transformers
    reads it, by `rope_scaling`.
    """
    if architecture in _OLD:
        rotary = _block(config, "rotary", file)
        scaling: Mapping[str, Any] = {"factor": rotary.get("scaling_factor")}
        base, kind = rotary.get("base"), _or(rotary.get("type"), "dynamic")
    else:
        scaling = _block(config, "rope_scaling", file) or _for_all_layers(_block(config, "rope_parameters", file), file)
        base = _or(scaling.get("rope_theta"), config.get("rope_theta"))
        kind = _or(scaling.get("rope_type"), scaling.get("type"), "default")
    settings: dict[str, Any] = {"rope_base": _or(base, 10000.0)}
    if kind == "llama3":
        settings["rope_scaling"] = _llama3(config, scaling, file)
    elif kind == "dynamic":
        settings |= {"use_dynamic_ntk_rope": True, "dynamic_ntk_factor": _or(scaling.get("factor"), 1.0)}
    elif kind not in ("default", "origin"):
        raise CheckpointError(f"rotary positions of type {kind!r} are not supported", file=file)
    if _or(scaling.get("partial_rotary_factor"), config.get("partial_rotary_factor"), 1.0) != 1.0:
        raise CheckpointError("rotary positions of a part of each head are not supported", file=file)
    return settings


def _llama3(config: Mapping[str, Any], scaling: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The numbers of Llama 3's scaling; transformers takes the original length from four places, in this order."""
    original = "original_max_position_embeddings"
    places = (config.get(original), scaling.get(original), config.get("max_position_embeddings"), 2048)
    settings: dict[str, Any] = {"rope_type": "llama3", original: _or(*places)}
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if scaling.get(name) is None:
            raise CheckpointError(f"is missing in {dict(scaling)}", file=file, key=f"rope_scaling.{name}")
        settings[name] = scaling[name]
    return settings


def _for_all_layers(parameters: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """`rope_parameters`, which may be given for each kind of layer; here all layers are of one kind."""
    kinds = [value for value in parameters.values() if isinstance(value, Mapping)]
    if any(kind != kinds[0] for kind in kinds):
        raise CheckpointError("layers with different rotary positions are not supported", file=file)
    return kinds[0] if kinds else parameters


def _block(config: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    """A block of settings; empty where there is none."""
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"{value!r} is no block of settings", file=file, key=name)
    return value or {}


def _size(config: Mapping[str, Any], name: str, file: Path, default: int | None) -> int:
    """A whole number above 0."""
    value = _or(config.get(name), default)
    if value is None:
        raise CheckpointError("cannot be read: it is missing", file=file, key=name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= 2**53:
        raise CheckpointError(f"cannot be read: {value!r} is no size", file=file, key=name)
    if value < 1 or value != int(value):
        raise CheckpointError(f"cannot be read: {value!r} is not a whole number above 0", file=file, key=name)
    return int(value)


def _biased(config: Mapping[str, Any], architecture: Architecture) -> bool:
    """Whether the attention's linear layers have biases. InternLM's classes have them unless told otherwise."""
    if architecture in (INTERNLM, INTERNLM2, INTERNLM_MOE):
        return bool(_or(config.get("bias"), True))
    return bool(config.get("attention_bias"))


def _or(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def _scaling_of(cfg: ModelConfig) -> dict[str, Any] | None:
    return None if cfg.rope_scaling is None else cfg.rope_scaling.model_dump()


def _refuse(config: Mapping[str, Any], architecture: Architecture, file: Path) -> None:
    """What a config.json may ask for that our decoder does not do."""
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(f"hidden_act {config['hidden_act']!r} is not supported, only silu", file=file)
    if config.get("mlp_bias"):
        raise CheckpointError("an MLP with biases is not supported", file=file)
    layers = config.get("layer_types")
    if config.get("use_sliding_window") or (isinstance(layers, list) and "sliding_attention" in layers):
        raise CheckpointError("attention in a sliding window is not supported", file=file)
    if config.get("quantization_config"):
        raise CheckpointError("quantised weights are not supported", file=file)


def _refuse_model(cfg: ModelConfig, architecture: Architecture) -> None:
    """What our decoder may do that a class does not."""
    heads = cfg.num_attention_heads
    old = (INTERNLM, INTERNLM_MOE)
    impossible = {
        "norm_type": cfg.norm_type != "rmsnorm",
        "use_swiglu": not cfg.use_swiglu,
        "apply_post_layer_norm": cfg.apply_post_layer_norm,
        "qk_norm": cfg.qk_norm != (architecture is QWEN3),
        "num_experts": cfg.num_experts > 1 and architecture is not INTERNLM_MOE,
        "num_kv_attention_heads": architecture in old and cfg.num_kv_attention_heads != heads,
        "head_dim": architecture not in (LLAMA, QWEN3) and cfg.head_dim * heads != cfg.hidden_size,
        "rope_scaling": architecture not in (LLAMA, QWEN3) and cfg.rope_scaling is not None,
        "use_dynamic_ntk_rope": cfg.use_dynamic_ntk_rope and cfg.rope_scaling is not None,
    }
    for name, refused in impossible.items():
        if refused:
            value = getattr(cfg, name)
            shown = f" {value}" if isinstance(value, bool | int | float | str) else ""
            message = f"a {architecture.name} has no place for model.{name}{shown}"
            raise CheckpointError(message, hint="convert to evo or internevo, which keep it")

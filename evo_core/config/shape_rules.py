"""The rules of a network's shape: which sizes go together, and which settings a family has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.config.schema.model import ModelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

MOST_LAYERS = 10_000
"""Ten times the deepest that was published. A slip of the hand would fill the memory before anything else is said."""


def shape_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """What contradicts itself in the ``model`` block."""
    model = config.model
    for name in ("model_type", "use_fp32_norm"):
        if getattr(model, name, None) != getattr(config, name):
            yield ConfigError(f"contradicts {name}", key=f"model.{name}", hint="state it at the top level only")
    if isinstance(model, ModelConfig):  # a model type of a user's own has rules of its own
        yield from _depth(model)
        yield from _heads(model)
        yield from _family(model, config.model_type)
        yield from _experts(model, config.model_type)


def _depth(model: ModelConfig) -> Iterator[ConfigError]:
    if model.num_layers > MOST_LAYERS:
        message = f"{model.num_layers} blocks are more than any model has"
        yield ConfigError(message, key="model.num_layers", hint=f"at most {MOST_LAYERS}")


def _heads(model: ModelConfig) -> Iterator[ConfigError]:
    heads, kv_heads, hidden = model.num_attention_heads, model.num_kv_attention_heads, model.hidden_size
    if hidden % heads and model.head_dim == hidden // heads:
        yield ConfigError(
            f"hidden_size {hidden} does not divide into {heads} heads",
            key="model.num_attention_heads",
            hint=f"nearest: {nearest(heads, divisors(hidden))} heads, or state head_dim",
        )
    elif model.head_dim % 2:
        message = f"a head is {model.head_dim} wide; rotary positions need an even width"
        follows = model.head_dim * heads == hidden
        yield ConfigError(message, key="model.num_attention_heads" if follows else "model.head_dim")
    if heads % kv_heads:
        yield ConfigError(
            f"{heads} query heads cannot share {kv_heads} key and value heads",
            key="model.num_kv_attention_heads",
            hint=f"nearest: {nearest(kv_heads, divisors(heads))}",
        )


def _family(model: ModelConfig, model_type: str) -> Iterator[ConfigError]:
    if model_type in ("INTERNLM", "INTERNLM_MoE") and model.num_kv_attention_heads != model.num_attention_heads:
        message = f"{model_type} has as many key and value heads as query heads"
        yield ConfigError(message, key="model.num_kv_attention_heads", hint="INTERNLM2_PUBLIC can share them")
    if model.norm_head and model_type != "INTERNLM2_PUBLIC":
        yield ConfigError(f"{model_type} has no such head", key="model.norm_head", hint="set it to false")
    if model.norm_head and model.tie_word_embeddings:
        yield ConfigError("scales the head's rows, which are the embedding's here", key="model.norm_head")
    if model.residual_in_fp32 and model.apply_post_layer_norm:
        message = "norms after each sum leave no residual stream to keep in float32"
        yield ConfigError(message, key="model.residual_in_fp32", hint="set it to false")


def _experts(model: ModelConfig, model_type: str) -> Iterator[ConfigError]:
    count, top_k = model.num_experts, model.moe.top_k
    if count == 1:
        return
    if model_type != "INTERNLM_MoE":
        yield ConfigError(f"{model_type} has no experts", key="model.num_experts", hint="INTERNLM_MoE has")
    if model.moe_type == "GShard" and top_k > 2:
        message = f"the GShard router sends a token to 1 or 2 experts, not to {top_k}"
        yield ConfigError(message, key="moe.top_k", hint="moe_type MegaBlock takes more")
    elif top_k > count:
        yield ConfigError(f"{top_k} is more than the {count} experts there are", key="moe.top_k")

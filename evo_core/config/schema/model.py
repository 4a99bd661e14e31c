"""The ``model`` and ``moe`` blocks: the shape of the network and its numbers' type."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import field_validator, model_validator

from evo_core.config.families import family_defaults
from evo_core.config.fields import Block, copied, execution, identity, optional_block
from evo_core.config.types import (
    LayerFraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    to_int,
)

Dtype = Literal["torch.bfloat16", "torch.float16", "torch.float32", "torch.tf32", "torch.float64"]


class RopeScalingConfig(Block):
    """Rotary frequencies slowed down for longer inputs, as Llama 3.1 does; names as in Hugging Face folders."""

    rope_type: Literal["llama3"] = identity("llama3", "The formula.", introduced=None)
    factor: PositiveFloat = identity(8.0, "Slow pairs turn so many times slower.", introduced=None)
    low_freq_factor: PositiveFloat = identity(1.0, "Fewer turns over the original length: slow.", introduced=None)
    high_freq_factor: PositiveFloat = identity(4.0, "More turns over it: left as they are.", introduced=None)
    original_max_position_embeddings: PositiveInt = identity(8192, "The original length, tokens.", introduced=None)

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor:g} is not below high_freq_factor {self.high_freq_factor:g}"
            )
        return self


class MoeConfig(Block):
    """Routing of tokens to experts."""

    top_k: PositiveInt = identity(1, "Experts a token goes to.", introduced=1)
    capacity_factor: PositiveFloat = identity(1.0, "Room per expert in training, over an even split.", introduced=1.0)
    eval_capacity_factor: PositiveFloat = identity(1.0, "The same in evaluation.", introduced=1.0)
    min_capacity: NonNegativeInt = identity(4, "Room per expert, at least.", introduced=4)
    noisy_gate_policy: Literal["Jitter", "RSample"] | None = identity(None, "Noise on the router.", introduced=None)
    drop_tokens: bool = identity(True, "Drop tokens beyond an expert's room.", introduced=True)
    use_rts: bool = identity(True, "Choose the dropped tokens at random.", introduced=True)
    use_fused_gating: bool = execution(False, "One kernel for the router.")


def _head_dim(hidden_size: Any, heads: Any) -> int:
    """The width of a head where none is stated; 2 where the sizes are no numbers, which is reported elsewhere."""
    try:
        return max(to_int(hidden_size) // to_int(heads), 1)
    except (ValueError, ZeroDivisionError):
        return 2


def _usual_head_dim(model: ModelConfig) -> int:
    return _head_dim(model.hidden_size, model.num_attention_heads)


def _unstated_length(model: ModelConfig) -> int:
    """A trained length that was not stated follows from data.seq_len, and adds nothing to the identity."""
    return 2048 if "max_position_embeddings" in model.model_fields_set else model.max_position_embeddings


class ModelConfig(Block):
    """A decoder. The settings left out take the values usual for the model type (families.py)."""

    renamed: ClassVar[dict[str, str]] = {
        "sequence_parallel": "it follows from parallel.tensor.mode: leave it out",
        "use_flash_attention": "its name is use_flash_attn",
        "num_hidden_layers": "its name is num_layers",
        "num_key_value_heads": "its name is num_kv_attention_heads",
        "intermediate_size": "it follows from hidden_size, mlp_ratio and multiple_of",
    }

    model_type: str = copied("INTERNLM", "The top-level model_type.")
    use_fp32_norm: bool = copied(False, "The top-level use_fp32_norm.")
    moe: MoeConfig = copied(MoeConfig(), "The top-level moe block.")

    num_layers: PositiveInt = identity(..., "Decoder blocks.")
    hidden_size: PositiveInt = identity(..., "Width of the residual stream.")
    num_attention_heads: PositiveInt = identity(..., "Query heads.")
    num_kv_attention_heads: PositiveInt = identity(..., "Key and value heads; default: num_attention_heads.")
    head_dim: PositiveInt = identity(
        ..., "Width of one attention head; default: hidden_size / num_attention_heads.", introduced=_usual_head_dim
    )
    vocab_size: PositiveInt = identity(..., "Rows of the embedding and of the head.")
    mlp_ratio: PositiveFloat = identity(8 / 3, "Width of the MLP over hidden_size, rounded up to multiple_of.")
    multiple_of: PositiveInt = identity(256, "The MLP's width is a multiple of this.")
    dtype: Dtype = identity(
        "torch.bfloat16", "Type of weights and activations; torch.tf32 is float32 with TF32 matrix products."
    )

    no_bias: bool = identity(False, "True: the attention's linear layers have no bias.")
    use_swiglu: bool = identity(True, "MLP is w2(silu(w1 x) * w3 x); False: w2(gelu(w1 x)).")
    qk_norm: bool = identity(False, "Queries and keys are normed, each head by itself.", introduced=False)
    norm_type: Literal["rmsnorm", "layernorm"] = identity("rmsnorm", "The norm before attention and MLP.")
    layer_norm_epsilon: PositiveFloat = identity(1e-5, "Added to the norm's mean square.")
    apply_post_layer_norm: bool = identity(False, "Norms after attention and MLP in place of before.")
    tie_word_embeddings: bool = identity(False, "The head's matrix is the embedding's.", introduced=False)
    norm_head: bool = identity(False, "Rows of the head are scaled to length 1.")
    is_reward: bool = identity(False, "A reward head in place of the vocabulary.", introduced=False)
    embed_grad_scale: PositiveFloat = identity(1.0, "The embedding's gradient is multiplied by this.")
    residual_in_fp32: bool = identity(False, "Keep the residual stream in float32.")
    drop_rate: Probability = identity(0.0, "Dropout after the embedding, attention and MLP.")
    attn_drop_rate: Probability = identity(0.0, "Dropout on attention weights.")

    rope_base: PositiveFloat = identity(..., "Base of the rotary embedding's frequencies.")
    qk_interleaved: bool = identity(
        ..., "Rotary pairs: True takes neighbours (0,1),(2,3)…, False takes halves (0,d/2),(1,d/2+1)…"
    )
    rope_scaling: RopeScalingConfig | None = optional_block("Slower rotary frequencies for longer inputs.")
    max_position_embeddings: PositiveInt = identity(
        2048, "Longest training length, for Dynamic NTK; default data.seq_len.", introduced=_unstated_length
    )
    use_dynamic_ntk_rope: bool = identity(
        False, "Stretch the rotary base for longer inputs at generation.", introduced=False
    )
    dynamic_ntk_factor: PositiveFloat = identity(1.0, "Stretch it so much further than needed.", introduced=1.0)

    init_type: Literal["normal", "uniform"] = identity("normal", "Distribution of initial weights.")
    use_scaled_init: bool = identity(True, "Output layers of block i start 1/sqrt(2(i+1)) times smaller.")
    embedding_init_std: NonNegativeFloat = identity(..., "Standard deviation of the embedding at the start.")
    attn_wqkv_init_std: NonNegativeFloat = identity(..., "The same for query, key and value.")
    attn_other_init_std: NonNegativeFloat = identity(..., "The same for the attention's output layer.")
    ffn_uplayer_init_std: NonNegativeFloat = identity(..., "The same for the MLP's w1 and w3.")
    ffn_other_init_std: NonNegativeFloat = identity(..., "The same for the MLP's w2.")
    out_head_init_std: NonNegativeFloat = identity(..., "The same for the head.")

    num_experts: PositiveInt = identity(1, "Experts of a mixture; 1: a plain MLP.", introduced=1)
    moe_use_residual: bool = identity(False, "A plain MLP beside the experts.", introduced=False)
    moe_type: Literal["GShard", "MegaBlock", "MegaBlock-D"] = identity(
        "GShard", "Kind of expert layer.", introduced="GShard"
    )

    checkpoint: LayerFraction = execution(
        0.0, "Share of the blocks whose activations are recomputed in the backward pass (true: all)."
    )
    use_flash_attn: bool = execution(True, "Attend with the best variable-length kernel there is.")
    compile: bool = execution(False, "Let torch.compile make kernels for each block; the first steps take minutes.")
    num_chunks: PositiveInt = execution(1, "Model pieces per pipeline rank; more than 1: interleaved schedule.")
    parallel_output: bool = execution(True, "Leave the logits split over the tensor-parallel ranks.")
    embed_split_hidden: bool = execution(True, "Split the embedding by hidden dimension, not by vocabulary.")
    mlp_layer_fusion: bool = execution(False, "Hold the MLP's w1 and w3 as one tensor.")
    dropout_selective_checkpoint: bool = execution(True, "Keep dropout out of recomputation.")

    @property
    def mlp_hidden_size(self) -> int:
        """Width of the MLP: int(hidden_size · mlp_ratio) rounded up to a multiple of multiple_of."""
        width = int(self.hidden_size * self.mlp_ratio)
        return self.multiple_of * -(-width // self.multiple_of)

    @property
    def dtype_name(self) -> str:
        """dtype without its prefix: bfloat16, float16, float32, tf32 or float64."""
        return self.dtype.removeprefix("torch.")

    def trained_on(self, seq_len: int) -> Self:
        """The same with the trained length of ``data.seq_len``, unless it states its own."""
        if "max_position_embeddings" in self.model_fields_set:
            return self
        model = self.model_copy(update={"max_position_embeddings": seq_len})
        model.model_fields_set.discard("max_position_embeddings")
        return model

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_usual(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("adapt_hf"), bool):  # the older name, with the opposite sense
            older = not data.pop("adapt_hf")
            if data.setdefault("qk_interleaved", older) != older:
                raise ValueError("adapt_hf and qk_interleaved contradict each other: state qk_interleaved alone")
        if data.get("num_kv_attention_heads") is None:
            data["num_kv_attention_heads"] = data.get("num_attention_heads", 1)
        if data.get("head_dim") is None:
            data["head_dim"] = _head_dim(data.get("hidden_size"), data.get("num_attention_heads"))
        for name, value in family_defaults(data.get("model_type", "INTERNLM")).items():
            if data.get(name) is None:
                data[name] = value
        return data

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_by_any_name(cls, value: Any) -> Any:
        name = str(value).removeprefix("torch.")
        full = f"torch.{'float16' if name == 'half' else name}"
        return full if full in get_args(Dtype) else value

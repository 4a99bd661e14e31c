"""Our weights in Hugging Face's Llama and Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_core.model import Decoder


def to_llama(model: Decoder, *, gradients: bool = False) -> Any:
    """A LlamaForCausalLM (Qwen3ForCausalLM) with the weights, or the gradients, of a model.

    The model has no biases, and rotary halves.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    cfg = model.cfg
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rope_base}
    if cfg.rope_scaling is not None:
        rope |= cfg.rope_scaling.model_dump()
    settings: dict[str, Any] = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.mlp_hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_attention_heads,
        "num_key_value_heads": cfg.num_kv_attention_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.layer_norm_epsilon,
        "rope_parameters": rope,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if cfg.qk_norm:
        theirs: Any = Qwen3ForCausalLM(Qwen3Config(**settings, attention_bias=False))
    else:
        theirs = LlamaForCausalLM(LlamaConfig(**settings))
    theirs = theirs.to(model.dtype)

    def of(weight: torch.nn.Parameter) -> Tensor:
        return weight.grad if gradients else weight.detach()

    state = {
        "model.embed_tokens.weight": of(model.embedding.weight),
        "model.norm.weight": of(model.norm.weight),
        "lm_head.weight": of(model.embedding.weight if cfg.tie_word_embeddings else model.head.weight),
    }
    for layer, block in enumerate(model.blocks.values()):
        prefix, attention = f"model.layers.{layer}.", block.attention
        if attention.layout == "split":
            q, k, v = (of(linear.weight) for linear in (attention.q, attention.k, attention.v))
        else:
            group, d = attention.heads // attention.kv_heads, attention.head_dim
            rows = of(attention.qkv.weight).unflatten(0, (attention.kv_heads, group + 2, d))
            q, k, v = (part.flatten(0, 2) for part in rows.split((group, 1, 1), dim=1))
        state |= {
            prefix + "self_attn.q_proj.weight": q,
            prefix + "self_attn.k_proj.weight": k,
            prefix + "self_attn.v_proj.weight": v,
            prefix + "self_attn.o_proj.weight": of(attention.out.weight),
            prefix + "mlp.gate_proj.weight": of(block.mlp.gate.weight),
            prefix + "mlp.up_proj.weight": of(block.mlp.up.weight),
            prefix + "mlp.down_proj.weight": of(block.mlp.down.weight),
            prefix + "input_layernorm.weight": of(block.attention_norm.weight),
            prefix + "post_attention_layernorm.weight": of(block.mlp_norm.weight),
        }
        if cfg.qk_norm:
            state[prefix + "self_attn.q_norm.weight"] = of(attention.q_norm.weight)
            state[prefix + "self_attn.k_norm.weight"] = of(attention.k_norm.weight)
    theirs.load_state_dict(state)
    return theirs

"""The same random weights in this repository's decoder, in transformers' Llama and in litgpt's GPT.

litgpt asks for another torch, so it goes into a folder of its own, and is found by PYTHONPATH:

    pip install --no-deps --target litgpt_site litgpt lightning-utilities lightning torchmetrics
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evo_core.config import ModelConfig
from evo_core.model import Decoder, build_model, init_weights
from evo_core.model.decoder import Attention


class Shape(NamedTuple):
    """A model's size."""

    layers: int
    hidden: int
    heads: int
    vocab: int


def evo(shape: Shape, dtype: torch.dtype = torch.float32) -> Decoder:
    """A Llama with weights drawn from seed 0 in float32 and rounded to the dtype."""
    cfg = ModelConfig.model_validate(
        {
            "model_type": "LLAMA2",
            "num_layers": shape.layers,
            "hidden_size": shape.hidden,
            "num_attention_heads": shape.heads,
            "vocab_size": shape.vocab,
            "no_bias": True,
            "qk_interleaved": False,
            "dtype": "torch.float32",
        }
    )
    first = build_model(cfg)
    init_weights(first, cfg, seed=0)
    if dtype == torch.float32:
        return first
    model: Decoder = build_model(cfg.model_copy(update={"dtype": str(dtype)}), dtype=dtype)
    model.load_state_dict(first.state_dict())
    return model


def transformers_llama(model: Decoder, **options: Any) -> nn.Module:
    """transformers' Llama with the weights of a model that `evo` made."""
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = model.cfg
    llama: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.mlp_hidden_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=cfg.num_attention_heads,
            num_key_value_heads=cfg.num_kv_attention_heads,
            max_position_embeddings=cfg.max_position_embeddings,
            rms_norm_eps=cfg.layer_norm_epsilon,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            **options,
        )
    ).to(model.dtype)
    state: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    blocks: Any = model.blocks.values()
    for layer, block in enumerate(blocks):
        at = f"model.layers.{layer}."
        for name, weight in zip("qkv", qkv_weights(block.attention), strict=True):
            state[f"{at}self_attn.{name}_proj.weight"] = weight
        state[f"{at}self_attn.o_proj.weight"] = block.attention.out.weight
        for name in ("gate", "up", "down"):
            state[f"{at}mlp.{name}_proj.weight"] = getattr(block.mlp, name).weight
        state[f"{at}input_layernorm.weight"] = block.attention_norm.weight
        state[f"{at}post_attention_layernorm.weight"] = block.mlp_norm.weight
    llama.load_state_dict({name: weight.detach() for name, weight in state.items()})
    return llama


def qkv_weights(attention: Attention) -> tuple[Tensor, ...]:
    """Of queries, keys and values [rows, hidden_size] each, of a family that keeps them apart or in groups."""
    if attention.layout == "split":
        return attention.q.weight, attention.k.weight, attention.v.weight
    group = attention.heads // attention.kv_heads
    parts = attention.qkv.weight.unflatten(0, (attention.kv_heads, group + 2, attention.head_dim))
    return tuple(part.flatten(0, 2) for part in parts.split((group, 1, 1), dim=1))


def litgpt_gpt(model: Decoder, block_size: int) -> nn.Module:
    """litgpt's GPT with the weights of a model that `evo` made."""
    from litgpt import GPT, Config  # type: ignore[import-not-found]

    cfg = model.cfg
    gpt: nn.Module = GPT(
        Config(
            block_size=block_size,
            vocab_size=cfg.vocab_size,
            padded_vocab_size=cfg.vocab_size,
            n_layer=cfg.num_layers,
            n_head=cfg.num_attention_heads,
            n_embd=cfg.hidden_size,
            n_query_groups=cfg.num_kv_attention_heads,
            rotary_percentage=1.0,
            rope_base=int(cfg.rope_base),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=cfg.layer_norm_epsilon,
            mlp_class_name="LLaMAMLP",
            intermediate_size=cfg.mlp_hidden_size,
        )
    ).to(model.dtype)
    state = {
        name: torch.cat(weights) if len(weights) > 1 else weights[0] for name, weights in _of_litgpt(model).items()
    }
    gpt.load_state_dict({name: weight.detach() for name, weight in state.items()})
    return gpt


@torch.no_grad()
def load_litgpt_state(model: Decoder, state: Mapping[str, Tensor]) -> None:
    """Give a model that `evo` could have made the weights of litgpt's GPT."""
    for name, weights in _of_litgpt(model).items():
        for weight, rows in zip(weights, state[name].split([len(weight) for weight in weights]), strict=True):
            weight.copy_(rows)


def _of_litgpt(model: Decoder) -> dict[str, list[Tensor]]:
    """By litgpt's names the weights of ours that it has in one, one below the other."""
    found: dict[str, list[Tensor]] = {
        "lm_head.weight": [model.head.weight],
        "transformer.wte.weight": [model.embedding.weight],
        "transformer.ln_f.weight": [model.norm.weight],
    }
    blocks: Any = model.blocks.values()
    for layer, block in enumerate(blocks):
        at, attention = f"transformer.h.{layer}.", block.attention
        found[f"{at}attn.qkv.weight"] = [attention.q.weight, attention.k.weight, attention.v.weight]
        found[f"{at}attn.proj.weight"] = [attention.out.weight]
        found[f"{at}norm_1.weight"], found[f"{at}norm_2.weight"] = (
            [block.attention_norm.weight],
            [block.mlp_norm.weight],
        )
        found[f"{at}mlp.fc_1.weight"], found[f"{at}mlp.fc_2.weight"] = [block.mlp.gate.weight], [block.mlp.up.weight]
        found[f"{at}mlp.proj.weight"] = [block.mlp.down.weight]
    return found

"""INTERNLM: the first InternLM. Fused Wqkv in blocks (q | k | v), biases on the attention projections."""

from __future__ import annotations

from evo_core.model.families.family import Family

INTERNLM = Family(
    name="INTERNLM",
    decoder_names={"embedding": "embedding", "blocks": "blocks", "norm": "norm", "head": "head"},
    block_names={"attention": "mixer", "attention_norm": "norm1", "mlp": "mlp", "mlp_norm": "norm2"},
    attention_names={"qkv": "Wqkv", "out": "out_proj"},
    qkv="blocked",
)

"""INTERNLM2_PUBLIC: InternLM2. Fused wqkv in groups (each key/value head with its query heads)."""

from __future__ import annotations

from evo_core.model.families.family import Family

INTERNLM2_PUBLIC = Family(
    name="INTERNLM2_PUBLIC",
    decoder_names={"embedding": "tok_embeddings", "blocks": "layers", "norm": "norm", "head": "output"},
    block_names={
        "attention": "attention",
        "attention_norm": "attention_norm",
        "mlp": "feed_forward",
        "mlp_norm": "ffn_norm",
    },
    attention_names={"qkv": "wqkv", "out": "wo"},
    qkv="grouped",
)

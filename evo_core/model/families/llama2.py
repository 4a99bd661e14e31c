"""LLAMA2: as InternLM2, with separate query, key and value weights."""

from __future__ import annotations

from dataclasses import replace

from evo_core.model.families.internlm2 import INTERNLM2_PUBLIC

LLAMA2 = replace(
    INTERNLM2_PUBLIC,
    name="LLAMA2",
    attention_names={"q": "wq", "k": "wk", "v": "wv", "out": "wo"},
    qkv="split",
)

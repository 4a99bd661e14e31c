"""QWEN3: as Llama 3, with normed queries and keys (`model.qk_norm`) and heads of a stated width (`model.head_dim`)."""

from __future__ import annotations

from dataclasses import replace

from evo_core.model.families.llama2 import LLAMA2

QWEN3 = replace(LLAMA2, name="QWEN3")

"""LLAMA3: as Llama 2 in names and shape; longer texts by `model.rope_scaling` (3.1 and later)."""

from __future__ import annotations

from dataclasses import replace

from evo_core.model.families.llama2 import LLAMA2

LLAMA3 = replace(LLAMA2, name="LLAMA3")

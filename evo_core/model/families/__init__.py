"""The model families: how each names its parameters and orders its rows.

A family is data. The decoder that runs all of them is evo_core/model/decoder.py.
"""

from __future__ import annotations

from evo_core.model.families.family import Family
from evo_core.model.families.internlm import INTERNLM
from evo_core.model.families.internlm2 import INTERNLM2_PUBLIC
from evo_core.model.families.internlm_moe import INTERNLM_MOE
from evo_core.model.families.llama2 import LLAMA2
from evo_core.model.families.llama3 import LLAMA3
from evo_core.model.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {
    family.name: family for family in (INTERNLM, INTERNLM_MOE, INTERNLM2_PUBLIC, LLAMA2, LLAMA3, QWEN3)
}

__all__ = ["FAMILIES", "Family"]

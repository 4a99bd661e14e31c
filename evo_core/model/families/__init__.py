"""The model families: how each names its parameters and orders its rows.

A family is data. The decoder that runs all of them is evo_core/model/decoder.py.
"""

from __future__ import annotations

from evo_core.model.families.family import Family
from evo_core.model.families.internlm import INTERNLM
from evo_core.model.families.internlm2 import INTERNLM2_PUBLIC
from evo_core.model.families.llama2 import LLAMA2

FAMILIES: dict[str, Family] = {family.name: family for family in (INTERNLM, INTERNLM2_PUBLIC, LLAMA2)}

__all__ = ["FAMILIES", "Family"]

"""What distinguishes one model family from another, as plain data (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QKVLayout = Literal["blocked", "grouped", "split"]
"""Where the query, key and value rows lie.

blocked: one weight, all query heads, then all key heads, then all value heads.
grouped: one weight; per key/value head its query heads, then the key, then the value.
split:   three weights.
"""


@dataclass(frozen=True)
class Family:
    """Names and layout of one family.

    The three mappings take the decoder's role of a child module to the name it is registered, and so saved,
    under: a checkpoint of InternEvo then holds the same keys. What a family takes for settings that
    a configuration leaves out (rotary layout, initial deviations) is in evo_core/config/families.py.
    """

    name: str
    decoder_names: Mapping[str, str]
    block_names: Mapping[str, str]
    attention_names: Mapping[str, str]
    qkv: QKVLayout


#: The MLP has the same names in every family: down(silu(gate x) * up x), or down(gelu(up x)) without a gate.
SWIGLU_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}
GELU_NAMES = {"up": "fc1", "down": "fc2"}

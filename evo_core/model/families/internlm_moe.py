"""INTERNLM_MoE: InternLM with a mixture of experts in place of each MLP (`model.num_experts`, the block `moe`)."""

from __future__ import annotations

from dataclasses import replace

from evo_core.model.families.internlm import INTERNLM

INTERNLM_MOE = replace(INTERNLM, name="INTERNLM_MoE")

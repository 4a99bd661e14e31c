"""Compilation block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evo_core.model.decoder import Decoder
from evo_core.model.uncompiled import leave_uncompiled


def compile_blocks(model: nn.Module) -> int:
    """Let torch.compile make kernels for each block of a decoder, in place; names and weights stay as they are.

    All blocks share what is made for the first, since they have the same code and shapes. Attention between the
    projections is called as it is: its kernels take the lengths of documents, which differ from pack to pack.

    Returns:
        How many blocks; 0 for a model type of one's own.
    """
    if not isinstance(model, Decoder):
        return 0
    leave_uncompiled()
    blocks: Any = model.blocks.values()
    for block in blocks:
        core = block.attention.core
        core.forward = torch.compiler.disable(core.forward)
        block.compile()
    return len(blocks)

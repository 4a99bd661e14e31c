"""Sizes that a file claims, held against the tensors that there are, before a model of them is made."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.errors import CheckpointError

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


def check_sizes(cfg: ModelConfig, shapes: Collection[tuple[int, ...]], file: Path) -> None:
    """Refuse a number of layers or a width that the tensors cannot fill. Which of them lack is told later.

    Args:
        cfg: of one of the shipped families.
        shapes: of every tensor of the model.
        file: what claims the sizes.

    Raises:
        CheckpointError: naming the size.
    """
    elements = sum(math.prod(shape) for shape in shapes)
    limits = {
        "num_layers": len(shapes),
        "num_experts": max(len(shapes), 1),
        **dict.fromkeys(("hidden_size", "vocab_size", "mlp_hidden_size", "num_attention_heads", "head_dim"), elements),
    }
    for name, limit in limits.items():
        value: int = getattr(cfg, name)
        if value > limit:
            message = f"{value} does not fit weights of {len(shapes)} tensors with {elements} elements together"
            raise CheckpointError(message, file=file, key=name)

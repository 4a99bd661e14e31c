"""Weights in a folder of any format, found but not read yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evo_core.checkpoint.generation_settings import ending_of
from evo_core.errors import CheckpointError
from evo_core.weights.lazy import Lazy

if TYPE_CHECKING:
    from evo_core.config import ModelConfig, TrainConfig


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What weights may be of; the numbers of any other type mean something only with scales beside them."""


@dataclass(frozen=True)
class Weights:
    """What every reader gives and every writer takes.

    Attributes:
        folder: where they lie.
        kind: "evo", "internevo", "llama" or "hf".
        config: whose `model` block describes the network.
        tensors: in the plain form (plain.py).
        tokenizer: a file, or a folder that has one in it, or None.
        step, tokens: behind a checkpoint of our own.
        generation: how to generate with them, as `read_generation` gives it.
        trained_here: whether a training job wrote them, on documents that begin with the begin token.
    """

    folder: Path
    kind: str
    config: TrainConfig
    tensors: Mapping[str, Lazy]
    tokenizer: Path | None = None
    step: int = 0
    tokens: int = 0
    generation: Mapping[str, Any] = field(default_factory=dict)
    trained_here: bool = False

    @property
    def model(self) -> ModelConfig:
        """The `model` block."""
        return self.config.model

    @property
    def ending(self) -> frozenset[int]:
        """The ids that end a text, besides the tokenizer's own."""
        return ending_of(self.generation)


def dtype_setting(tensors: Mapping[str, Lazy], folder: Path) -> str:
    """What ``model.dtype`` is for such tensors: the type that most of their elements have.

    Raises:
        CheckpointError: it is none that a model can run in (quantised weights), or there are no tensors.
    """
    if not tensors:
        raise CheckpointError("holds no tensors", file=folder)
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += max(tensor.nbytes // tensor.dtype.itemsize, 1)
    dtype = sizes.most_common(1)[0][0]
    if dtype not in DTYPES:
        message = f"has weights of type {str(dtype).removeprefix('torch.')}"
        raise CheckpointError(message, file=folder, hint="take weights that are not quantised")
    return str(dtype)

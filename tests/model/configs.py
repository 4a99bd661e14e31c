"""Small `model` blocks for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_core.config import ModelConfig

TINY: dict[str, Any] = {
    "model_type": "INTERNLM2_PUBLIC",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
    "multiple_of": 8,
    "dtype": "torch.float32",
}


def tiny(**settings: Any) -> ModelConfig:
    """A `model` block of a few thousand parameters."""
    return ModelConfig.model_validate({**TINY, **settings})


def packed(lengths: list[int], vocab_size: int = 61, seed: int = 0) -> dict[str, Tensor]:
    """A packed sequence of random tokens with labels; each document's last label is ignored."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(vocab_size, (sum(lengths),), generator=generator)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    labels = input_ids.roll(-1)
    labels[ends[1:] - 1] = -100
    return {
        "input_ids": input_ids,
        "positions": torch.cat([torch.arange(n) for n in lengths]),
        "cu_seqlens": ends.to(torch.int32),
        "labels": labels,
    }


def randomise(model: torch.nn.Module, seed: int = 0, scale: float = 0.25) -> None:
    """Weights large enough that every part of the model matters, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * values if is_norm else scale * values)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|."""
    value, reference = value.detach().double(), reference.detach().double()
    return ((value - reference).abs().max() / reference.abs().max()).item()

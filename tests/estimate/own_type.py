"""A model type that is not shipped."""

from __future__ import annotations

from pydantic import BaseModel
from torch import nn


class Own(nn.Module):
    """Named in a configuration, and never built."""

    class Config(BaseModel):
        vocab_size: int
        dtype: str = "torch.float32"

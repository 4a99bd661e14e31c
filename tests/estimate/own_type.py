"""A model type that is not shipped."""

from __future__ import annotations

from torch import nn


class Own(nn.Module):
    """Named in a configuration, and never built."""

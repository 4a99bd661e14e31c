"""The feed-forward part of a block: down(silu(gate x) * up x), or without a gate down(gelu(up x))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model.aliases import AliasedModule
from evo_core.model.families.family import GELU_NAMES, SWIGLU_NAMES
from evo_core.model.ops.linear import Linear, of_one_input


class MLP(AliasedModule):
    """gate and up [ffn_size, hidden_size], down [hidden_size, ffn_size]; no biases.

    Args:
        gated: SwiGLU (arXiv:2002.05202), else GELU in its tanh form.
    """

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        *,
        gated: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(SWIGLU_NAMES if gated else GELU_NAMES)
        self.gated = gated
        if gated:
            self.gate = Linear(hidden_size, ffn_size, bias=False, device=device, dtype=dtype)
        self.up = Linear(hidden_size, ffn_size, bias=False, device=device, dtype=dtype)
        self.down = Linear(ffn_size, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden_size] -> [T, hidden_size]."""
        if self.gated:
            gate, up = of_one_input(x, self.gate, self.up)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(self.up(x), approximate="tanh"))

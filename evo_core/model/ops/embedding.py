"""Token embedding, with the gradient scale of GLM-130B."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself [...], whose gradient is multiplied by ``scale``.

    GLM-130B (arXiv:2210.02414, section 3.3): ``scale * x + (1 - scale) * stop_gradient(x)``. Written as
    ``detached + scale * (x - detached)``, which in floating point is x exactly.
    """
    if scale == 1:
        return x
    detached = x.detach()
    return detached + scale * (x - detached)


class Embedding(nn.Module):
    """Rows of ``weight`` [vocab_size, hidden_size] for token ids [...], with ``grad_scale`` on their gradient."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        grad_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.grad_scale = grad_scale
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size, device=device, dtype=dtype))

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [T] int64 -> [T, hidden_size]."""
        return scale_gradient(F.embedding(input_ids, self.weight), self.grad_scale)

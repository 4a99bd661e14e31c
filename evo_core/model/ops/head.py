"""The output projection onto the vocabulary, and with labels its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.ops.embedding import Embedding, scale_gradient
from evo_core.model.ops.linear import linear
from evo_core.model.ops.loss import linear_cross_entropy


class Head(nn.Module):
    """``weight`` [vocab_size, hidden_size], its own or the embedding's; no bias.

    Args:
        tied_to: the embedding whose weight is used; then the head has no parameter of its own.
        norm_head: rows of the weight are divided by their L2 norm before use.
        grad_scale: as the embedding's (`model.embed_grad_scale`): scales the weight's gradient.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        norm_head: bool = False,
        grad_scale: float = 1.0,
        tied_to: Embedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm_head, self.grad_scale = norm_head, grad_scale
        # In a tuple it is no child of this module: the parameter keeps one name, the embedding's.
        self._tied_to = () if tied_to is None else (tied_to,)
        if tied_to is None:
            self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size, device=device, dtype=dtype))

    @property
    def is_tied(self) -> bool:
        """Whether the weight is the embedding's."""
        return bool(self._tied_to)

    @property
    def tied_to(self) -> Embedding | None:
        """The embedding whose weight it uses."""
        return self._tied_to[0] if self._tied_to else None

    def effective_weight(self) -> Tensor:
        """The matrix that is multiplied with: [vocab_size, hidden_size], differentiable."""
        own: Tensor = self._tied_to[0].weight if self._tied_to else self.weight
        weight = scale_gradient(own, self.grad_scale)
        if self.norm_head:
            weight = F.normalize(weight.to(accumulation_dtype(weight.dtype)), dim=-1).to(weight.dtype)
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [T, hidden_size] -> [T, vocab_size]."""
        return linear(hidden, self.effective_weight())

    def loss(self, hidden: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nll [T], hit [T]) of labels [T]; see `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.effective_weight(), labels, label_smoothing=label_smoothing)

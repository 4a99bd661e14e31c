"""The output projection of which each rank holds the rows of some ids, and its loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import linear
from evo_core.model.ops.loss import linear_cross_entropy
from evo_core.parallel.collectives import all_gather
from evo_core.parallel.tensor.exchange import Exchange


class ParallelHead(Head):
    """``weight`` [ids here, hidden_size], its own or that of an embedding which is cut by vocabulary.

    Args:
        vocab_size: ids of the whole vocabulary, which the ranks share evenly.
        gathers_logits: for the loss, each rank puts together a few rows of all logits (``parallel_output: false``);
            else only what is known of each row travels.
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, exchange: Exchange, *, gathers_logits: bool, **settings: Any
    ) -> None:
        self_ids = vocab_size // exchange.axis.size
        super().__init__(hidden_size, self_ids, **settings)
        self.exchange, self.gathers_logits = exchange, gathers_logits
        self.first, self.size = exchange.axis.rank * self_ids, vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows here, hidden_size] -> [T, vocab_size], alike on every rank."""
        return self.exchange.gather_columns(linear(self.exchange.enter(hidden), self.effective_weight()))

    def loss(self, hidden: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nll [T], hit [T]) of labels [T], alike on every rank; see `linear_cross_entropy`."""
        hidden = self.exchange.enter(hidden)
        return linear_cross_entropy(hidden, self.effective_weight(), labels, label_smoothing=label_smoothing, part=self)

    def stacked(self, x: Tensor) -> Tensor:
        """What every rank has in place of x [...], in their order: [ranks, ...]."""
        axis = self.exchange.axis
        parts = x.new_empty((axis.size, *x.shape))
        all_gather(parts.view(-1), x.reshape(-1), axis.group).wait()
        return parts

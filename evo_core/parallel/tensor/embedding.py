"""Token embeddings of which each rank holds a part: of the hidden size, or of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from evo_core.model.ops.embedding import Embedding, scale_gradient
from evo_core.parallel.tensor.exchange import Exchange


class HiddenEmbedding(Embedding):
    """Some of the columns: ``weight`` [vocab_size, hidden_size here]."""

    def __init__(self, vocab_size: int, hidden_here: int, exchange: Exchange, **settings: Any) -> None:
        super().__init__(vocab_size, hidden_here, **settings)
        self.exchange = exchange

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [T] int64 -> [rows here, hidden_size]."""
        columns, exchange = super().forward(input_ids), self.exchange
        return exchange.columns_to_rows(columns) if exchange.by_rows else exchange.gather_columns(columns)


class VocabularyEmbedding(Embedding):
    """Some of the rows: ``weight`` [ids here, hidden_size], from the id `first` on."""

    def __init__(self, ids_here: int, hidden_size: int, exchange: Exchange, *, first: int, **settings: Any) -> None:
        super().__init__(ids_here, hidden_size, **settings)
        self.exchange, self.first = exchange, first

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [T] int64 -> [rows here, hidden_size]; in mtp ids of any shape [...] -> [..., hidden_size]."""
        own = input_ids - self.first
        elsewhere = (own < 0) | (own >= self.weight.shape[0])
        # Of an id that is elsewhere any row is read, and 0 is added: each row of the sum comes from one rank.
        rows = F.embedding(own.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere.unsqueeze(-1), 0)
        return scale_gradient(self.exchange.leave(rows), self.grad_scale)

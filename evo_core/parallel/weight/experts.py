"""A mixture of experts whose weights are fetched.

All ranks route all tokens alike, and each takes its own to the experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from evo_core.model.ops.moe import Dispatch
from evo_core.model.ops.routing import Routing
from evo_core.parallel.tensor.exchange import Exchange


class RowsDispatch(Dispatch):
    """Takes the tokens here to experts that are whole.

    Every expert is called, even for no token: its weights come from ranks that have tokens for it.
    """

    calls_all = True

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    def forward(self, x: Tensor, routing: Routing, experts: nn.ModuleDict) -> Tensor:
        """As `Dispatch`: x [rows here, hidden_size], and routing of all T tokens -> [rows here, hidden_size]."""
        own = self.exchange.own_rows
        here = routing._replace(experts=own(routing.experts), weights=own(routing.weights), kept=own(routing.kept))
        return super().forward(x, here, experts)

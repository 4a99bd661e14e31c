"""A mixture of experts of which each rank holds a part of every expert.

All ranks route all tokens alike. Tokens are gathered once for all experts, and what these give is summed once.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evo_core.model.ops.linear import Linear
from evo_core.model.ops.routing import Routing
from evo_core.parallel.tensor.exchange import Exchange


class RouterLinear(Linear):
    """A whole layer that reads the rows here and returns all: ``weight`` [num_experts, hidden_size]."""

    def __init__(self, in_features: int, out_features: int, exchange: Exchange, **settings: Any) -> None:
        super().__init__(in_features, out_features, **settings)
        self.exchange = exchange

    def forward(self, x: Tensor) -> Tensor:
        """x [rows here, hidden_size] -> [T, num_experts], alike on every rank."""
        return self.exchange.gather_rows(super().forward(x))


class PartsDispatch(nn.Module):
    """Takes tokens to the part of each expert that is here, and adds the parts of the results up.

    Args:
        exchange: of the ranks that have the parts.
        dispatch: to the experts, of whose parts it knows nothing.
    """

    def __init__(self, exchange: Exchange, dispatch: nn.Module) -> None:
        super().__init__()
        self.exchange, self.dispatch = exchange, dispatch

    def forward(self, x: Tensor, routing: Routing, experts: nn.ModuleDict) -> Tensor:
        """As `Dispatch`: x [rows here, hidden_size], and routing of all T tokens -> [rows here, hidden_size]."""
        exchange = self.exchange
        # A weight's gradient is its product with an expert's result, of which each rank has a part of the sum.
        routing = routing._replace(weights=exchange.sum_gradients(routing.weights))
        return exchange.leave(self.dispatch(exchange.enter(x), routing, experts))

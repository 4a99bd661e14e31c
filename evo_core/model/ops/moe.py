"""A mixture of experts in place of a block's MLP.

Names of parameters are InternEvo's: ``moe_layer.gate.wg``, ``moe_layer.experts.wrapped_experts.{e}``, and
with a residual ``residual_mlp`` and ``coefficient``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evo_core.model.draws import LayerDraws
from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.routing import Routing, capacity, dropless, gshard

if TYPE_CHECKING:
    from evo_core.config import ModelConfig

_JITTER = 1e-2


class MixtureMLP(nn.Module):
    """Experts, and with ``moe_use_residual`` a plain MLP beside them (arXiv:2201.05596).

    The sum of both is weighted per token by ``softmax(coefficient(x))``.
    """

    def __init__(self, cfg: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.moe_layer = ExpertLayer(cfg, **factory)
        self.residual_mlp: MLP | None = None
        if cfg.moe_use_residual:
            self.residual_mlp = _mlp(cfg, **factory)
            self.coefficient = Linear(cfg.hidden_size, 2, bias=True, **factory)

    def forward(self, x: Tensor, *, keep_all: bool = False, draws: LayerDraws | None = None) -> tuple[Tensor, Tensor]:
        """x [T, hidden_size] -> the same shape, and the balance loss, a scalar in float32 or wider.

        Args:
            keep_all: drop no token, whatever the settings say: a text that is generated must not depend on those
                beside it.
            draws: what the router draws from; None draws nothing.
        """
        out, balance = self.moe_layer(x, keep_all=keep_all, draws=draws)
        if self.residual_mlp is None:
            return out, balance
        share = self.coefficient(x).softmax(-1)
        return out * share[:, :1] + self.residual_mlp(x) * share[:, 1:], balance


class ExpertLayer(nn.Module):
    """Router, experts, and the dispatch between them."""

    def __init__(self, cfg: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.gate = Gate(cfg, **factory)
        # Not a list, which would number a rank's experts from 0: names in a checkpoint are the whole model's.
        experts = nn.ModuleDict({str(number): _mlp(cfg, **factory) for number in range(cfg.num_experts)})
        self.experts = nn.ModuleDict({"wrapped_experts": experts})
        self.dispatch: nn.Module = Dispatch()

    def forward(self, x: Tensor, *, keep_all: bool = False, draws: LayerDraws | None = None) -> tuple[Tensor, Tensor]:
        """x [T, hidden_size] -> the same shape, and the balance loss, a scalar; see `MixtureMLP`."""
        routing = self.gate(x, keep_all=keep_all, draws=draws)
        return self.dispatch(x, routing, self.wrapped_experts), routing.balance

    @property
    def wrapped_experts(self) -> nn.ModuleDict:
        """The experts that are here, by their number in the whole layer, as a string."""
        experts = self.experts["wrapped_experts"]
        assert isinstance(experts, nn.ModuleDict)  # made so
        return experts


class Gate(nn.Module):
    """The router: ``wg`` [num_experts, hidden_size], in float32 or wider whatever the model's type.

    Capacity is counted over all tokens that are routed together, a whole micro-batch: ``wg`` may be replaced by one
    that gathers the logits of all tokens where x holds a part of them, and the routing is then of all. Noise and
    random choices are made in training alone.
    """

    def __init__(self, cfg: ModelConfig, *, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.moe, self.is_dropless = cfg.moe, cfg.moe_type != "GShard"
        wide = accumulation_dtype(dtype)
        self.wg = Linear(cfg.hidden_size, cfg.num_experts, bias=False, device=device, dtype=wide)

    @property
    def draws(self) -> bool:
        """Whether routing takes random numbers in training."""
        moe = self.moe
        at_random = moe.use_rts and moe.drop_tokens and moe.top_k == 1
        return not self.is_dropless and (moe.noisy_gate_policy is not None or at_random)

    def forward(self, x: Tensor, *, keep_all: bool = False, draws: LayerDraws | None = None) -> Routing:
        """x [T, hidden_size] -> the experts of each token whose logits ``wg`` returns.

        Args:
            keep_all: no expert is ever full.
            draws: what noise and random choices come from; None makes none.
        """
        moe = self.moe
        # A router decides between nearly equal numbers, and in 16 bits many of them would be equal.
        x = x.to(self.wg.weight.dtype)
        if self.is_dropless:
            return dropless(self.wg(x), moe.top_k)
        if draws is not None and moe.noisy_gate_policy == "Jitter":
            x = draws.jitter(x, _JITTER, "router input")
        logits = self.wg(x)
        room = None
        if moe.drop_tokens and not keep_all:
            factor = moe.capacity_factor if self.training else moe.eval_capacity_factor
            tokens, experts = logits.shape
            room = capacity(tokens, experts, top_k=moe.top_k, factor=factor, least=moe.min_capacity)
        noise = order = None
        if draws is not None and moe.noisy_gate_policy == "RSample":
            noise = draws.gumbel(logits, "choice of experts")
        # Two experts share a token, and the second choices queue behind all first ones: no order to draw.
        if draws is not None and room is not None and moe.use_rts and moe.top_k == 1:
            order = draws.order(logits, "queue before experts")
        return gshard(logits, moe.top_k, room, noise=noise, order=order)


class Dispatch(nn.Module):
    """Takes tokens to their experts and the results back: no weights, the one place where experts may be elsewhere.

    Attributes:
        calls_all: call experts that no token is for, too.
        ranks: that the experts are dealt out over, each of which has as many.
    """

    calls_all = False
    ranks = 1

    def forward(self, x: Tensor, routing: Routing, experts: nn.ModuleDict) -> Tensor:
        """sum over each token's kept experts of weight * expert(x).

        Args:
            x: [T, hidden_size].
            routing: of these T tokens.
            experts: those that are here, each a module [n, hidden_size] -> [n, hidden_size].

        Returns:
            [T, hidden_size]; 0 where no expert kept the token.
        """
        top_k = routing.experts.shape[1]
        nowhere = len(experts) * self.ranks  # the number of an expert that does not exist, sorted behind all others
        wanted = routing.experts.masked_fill(~routing.kept, nowhere).flatten()
        # Sorted by expert, an expert's tokens lie side by side: one product each, and no padding to the fullest.
        counts = torch.bincount(wanted, minlength=nowhere + 1)[:nowhere]
        order = wanted.argsort(stable=True)
        results = self.run(x, order // top_k, counts, experts)
        # Each result back to its own place and then summed: the same bits every time on every device.
        back = results.new_zeros(wanted.shape[0], x.shape[1]).index_copy(0, order[: results.shape[0]], results)
        weights = routing.weights.to(x.dtype).unsqueeze(1)
        return torch.bmm(weights, back.view(x.shape[0], top_k, -1)).squeeze(1)

    def run(self, x: Tensor, tokens: Tensor, counts: Tensor, experts: nn.ModuleDict) -> Tensor:
        """What experts make of tokens.

        Args:
            x: [T, hidden_size].
            tokens: [n] int64, rows of x sorted by expert; behind those of the last expert are others.
            counts: [experts of the layer] int64, how many are for each.
            experts: those that are here.

        Returns:
            [sum(counts), hidden_size], in the order of the tokens.
        """
        sizes = counts.tolist()
        parts = zip(experts.values(), x[tokens[: sum(sizes)]].split(sizes), strict=True)
        return torch.cat([expert(part) for expert, part in parts if part.shape[0] or self.calls_all])


def _mlp(cfg: ModelConfig, **factory: Any) -> MLP:
    return MLP(cfg.hidden_size, cfg.mlp_hidden_size, gated=cfg.use_swiglu, **factory)

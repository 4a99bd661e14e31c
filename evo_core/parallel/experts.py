"""Experts dealt out over data-parallel ranks, and the exchange that takes tokens to them.

Of n ranks each has a run of the experts, E / n. A rank routes the tokens of its own micro-batch, all of them together,
as it does where every rank has all experts: capacity and balance loss know nothing of the layout. Then tokens travel::

    sorted by expert -> all-to-all -> regrouped by expert -> experts -> all-to-all -> own places, weighted, summed

(Lepikhin et al. 2020, arXiv:2006.16668). The backward pass is the same way back, so that an expert's gradient has in it
what the tokens of all n ranks add; what is left to sum is over the ranks that hold the same experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evo_core.model.decoder import Decoder
from evo_core.model.ops.moe import Dispatch, ExpertLayer
from evo_core.model.uncompiled import uncompiled
from evo_core.parallel.collectives import all_to_all, all_to_all_rows
from evo_core.parallel.mesh import Axis


def keep_own_experts(model: Decoder, axis: Axis) -> set[nn.Parameter]:
    """Take out of a decoder, in place, the experts of the other ranks of an axis. What stays keeps its name.

    Returns:
        The parameters of those that stay.
    """
    kept: set[nn.Parameter] = set()
    for layer in model.modules():
        if isinstance(layer, ExpertLayer):
            experts = layer.wrapped_experts
            each = len(experts) // axis.size
            for number in set(range(len(experts))) - set(range(axis.rank * each, (axis.rank + 1) * each)):
                del experts[str(number)]
            layer.dispatch = DealtDispatch(axis)
            kept |= set(experts.parameters())
    return kept


class DealtDispatch(Dispatch):
    """Takes tokens to the rank that has their expert, and results back.

    Every expert is called, even for no token, so that gradients are made in one order on every rank.
    """

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis, self.ranks = axis, axis.size

    def run(self, x: Tensor, tokens: Tensor, counts: Tensor, experts: nn.ModuleDict) -> Tensor:
        """See `Dispatch.run`."""
        # By rank, then by expert: how many tokens this rank has for the others' experts, and these for its own.
        going, coming = _both(counts, self.axis)
        sent, received = [sum(each) for each in going], [sum(each) for each in coming]
        rows = _to_ranks(x[tokens[: sum(sent)]], sent, received, self.axis)
        parts, here = rows.split([count for each in coming for count in each]), len(experts)
        results = [
            expert(torch.cat(parts[number::here])).split([each[number] for each in coming])
            for number, expert in enumerate(experts.values())
        ]
        back = torch.cat([of_expert[rank] for rank in range(self.ranks) for of_expert in results])
        return _to_ranks(back, received, sent, self.axis)


@uncompiled
def _both(counts: Tensor, axis: Axis) -> list[list[list[int]]]:
    """Counts [ranks * experts of each] that are sent, and those that come: [2][ranks][experts of each]."""
    both = torch.stack([counts, counts])
    all_to_all(both[1], counts, axis.group).wait()
    answer: list[list[list[int]]] = both.view(2, axis.size, -1).tolist()
    return answer


@uncompiled
def _to_ranks(x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """x [sum(sent), ...], by rank -> [sum(received), ...], by the rank that it comes from."""
    return _ToRanks.apply(x, sent, received, axis)


class _ToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
        ctx.sent, ctx.received, ctx.axis = sent, received, axis
        return _exchanged(x, sent, received, axis)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grads[0], ctx.received, ctx.sent, ctx.axis), None, None, None


def _exchanged(x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    came = x.new_empty((sum(received), *x.shape[1:]))
    all_to_all_rows(came, x.contiguous(), received, sent, axis.group).wait()
    return came

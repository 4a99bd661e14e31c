"""Which expert reads which token: the routers of a mixture of experts.

GShard (arXiv:2006.16668, in the form of DeepSpeed's that InternEvo took over): one or two experts a token,
each with room for a fixed number of tokens; what does not fit is dropped. MegaBlock (arXiv:2211.15841): any number of
experts a token and nothing dropped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Routing(NamedTuple):
    """The experts of each token.

    Attributes:
        experts: [T, k] int64.
        weights: [T, k] in the type of the router's logits; what the experts' results are multiplied with.
        kept: [T, k] bool; False where the token found no room, and then the weight is 0.
        balance: scalar, the auxiliary loss that pulls the router towards an even use of its experts; 1 is even.
    """

    experts: Tensor
    weights: Tensor
    kept: Tensor
    balance: Tensor


def capacity(tokens: int, experts: int, *, top_k: int, factor: float, least: int) -> int:
    """Tokens that an expert has room for: ``ceil(tokens / experts * factor * top_k)``, at least ``least``."""
    return max(math.ceil(tokens / experts * factor * top_k), least)


def gshard(
    logits: Tensor, top_k: int, room: int | None, *, noise: Tensor | None = None, order: Tensor | None = None
) -> Routing:
    """The most likely expert of each token, for ``top_k`` 2 also the second.

    With p = softmax(logits) the weight of a single expert is its p; two share 1 in proportion to their p, and where
    one of them has no room, the other takes all. The balance loss is ``E * sum_e mean(p_e) * share_e``, with share_e
    the share of tokens whose first expert is e.

    Args:
        logits: [T, E], float32 or wider.
        top_k: 1 or 2.
        room: tokens an expert takes, first choices before second ones; None takes all.
        noise: [T, E] Gumbel noise, with which the last choice is a draw from p ("RSample"); None takes the likeliest.
        order: [T] int64, with ``top_k`` 1 the order in which tokens ask for room; None is their own, where the last
            ones find none.
    """
    probability = logits.softmax(-1)
    count = logits.shape[1]
    drawn = logits.detach() if noise is None else logits.detach() + noise
    choices = [(drawn if top_k == 1 else logits).argmax(-1)]
    first = F.one_hot(choices[0], count)
    if top_k == 2:
        choices.append(drawn.masked_fill(first.bool(), -math.inf).argmax(-1))
    experts = torch.stack(choices, 1)
    # Counts have no gradient, so it is the mean probability that is pushed away from the experts used most.
    balance = count * (probability.mean(0) * first.to(logits.dtype).mean(0)).sum()

    kept = torch.ones_like(experts, dtype=torch.bool)
    if room is not None:
        kept = _queue_positions(experts, count, order) < room
    weights = probability.gather(1, experts) * kept
    if top_k == 2:  # after the drop: an expert that has room makes up for the other one
        weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).eps)
    return Routing(experts, weights, kept, balance)


def dropless(logits: Tensor, top_k: int) -> Routing:
    """The ``top_k`` most likely experts of each token, which share 1 in proportion to their probabilities.

    The balance loss counts all choices: ``E * sum_e mean(p_e) * share_e``, with share_e expert e's share of them.

    Args:
        logits: [T, E], float32 or wider.
        top_k: 1 to E.
    """
    probability = logits.softmax(-1)
    weights, experts = probability.topk(top_k, dim=-1)
    count = logits.shape[1]
    share = F.one_hot(experts, count).to(logits.dtype).mean((0, 1))
    balance = count * (probability.mean(0) * share).sum()
    return Routing(experts, weights / weights.sum(1, keepdim=True), torch.ones_like(experts, dtype=torch.bool), balance)


def _queue_positions(experts: Tensor, count: int, order: Tensor | None) -> Tensor:
    """The position of each choice [T, k] in the queue before its expert; first choices stand before second ones."""
    queue = experts.t().flatten()
    asking = F.one_hot(queue if order is None else queue[order], count)
    positions = ((asking.cumsum(0) - 1) * asking).sum(1)
    if order is not None:
        positions = torch.empty_like(positions).scatter_(0, order, positions)
    return positions.view(experts.shape[1], -1).t()

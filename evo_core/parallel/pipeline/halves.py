"""The second half of a zero-bubble backward pass: the gradients of a stage's weights.

The first half, torch's, leaves groups of weights with the autograd nodes that compute with them and what flowed into
each output of these. torch 2.11's own second half adds up what flowed into the outputs of a node and takes the sum for
its first one, which is wrong for layers of one input that are one node, as tensor ranks have them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


def weight_half(groups: Iterable[dict[str, Any]]) -> None:
    """Add their gradients to `.grad` of the weights.

    Args:
        groups: what `stage_backward_input` of torch.distributed.pipelining returned; used up.
    """
    for group in groups:
        nodes, into_each = group.pop("intermediates"), group.pop("grads", None)
        if into_each is None:  # nothing flowed there
            continue
        reached = [(node, into) for node, into in zip(nodes, into_each, strict=True) if into is not None]
        outputs = [
            (GradientEdge(node, number), gradient)
            for node, into in reached
            for number, gradient in enumerate(into)
            if gradient is not None
        ]
        if not outputs:
            continue
        weights: list[Tensor] = [node.variable for node in group["params"]]
        # Of nodes behind one another, as of a weight that is used twice, each has had all that flows into it.
        clamps = [node.register_prehook(lambda _, into=into: into) for node, into in reached] if len(nodes) > 1 else []
        edges, gradients = zip(*outputs, strict=True)
        try:
            of_weights = torch.autograd.grad(edges, weights, grad_outputs=gradients)
        finally:
            for clamp in clamps:
                clamp.remove()
        for weight, gradient in zip(weights, of_weights, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

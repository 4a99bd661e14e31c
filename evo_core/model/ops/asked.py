"""What a backward pass asks of an operation: its gradients may be made in several calls of autograd."""

from __future__ import annotations

from typing import Any

import torch


def asked_for(ctx: Any) -> tuple[bool, ...]:
    """Whether this call of autograd takes the gradient of each input of a `torch.autograd.Function`, in its backward.

    ``ctx.needs_input_grad`` says whether any call may. A zero-bubble schedule asks for the gradient of a layer's input
    in one call and for those of its weights in another: what is made and not taken is time, and messages to others.
    """
    nodes = iter(node for node, _ in ctx.next_functions if node is not None)
    return tuple(needed and _runs(next(nodes)) for needed in ctx.needs_input_grad)


def _runs(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # what it says of a weight that this very call asks for
        return True

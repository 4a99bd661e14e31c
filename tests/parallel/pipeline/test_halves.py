"""The halves of a backward pass against the whole one, where a node has several outputs or a weight several uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input

from evo_core.parallel.pipeline.halves import weight_half


class _Two(torch.autograd.Function):
    """Two layers of one input in one node, as tensor ranks have them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, first, second)
        return x @ first, x @ second

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, first, second = ctx.saved_tensors
        return grads[0] @ first.t() + grads[1] @ second.t(), x.t() @ grads[0], x.t() @ grads[1]


def _several_outputs(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    one, other = _Two.apply(x, a, b)
    return (one.sin() * other).square().sum()


def _one_of_two_outputs(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _Two.apply(x, a, b)[1].square().sum()


def _a_weight_twice(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (((x @ a).tanh() @ a).tanh() @ b).square().sum()


@pytest.mark.parametrize("function", [_several_outputs, _one_of_two_outputs, _a_weight_twice])
def test_both_halves_make_the_gradients_of_the_whole(function: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(4, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    expected = torch.autograd.grad(function(*(whole := [t.clone().requires_grad_() for t in given])), whole)

    x, *weights = (nn.Parameter(tensor.clone()) for tensor in given)
    for already in (0, 1):  # gradients are added to those that are there
        _, groups = stage_backward_input([function(x, *weights)], None, [x], iter(weights))
        assert all((weight.grad is None) == (already == 0) for weight in weights)
        weight_half(groups)
    for tensor, gradient in zip((x, *weights), expected, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)

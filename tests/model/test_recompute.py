"""A block that keeps its input alone, under backward passes in parts and whole ones."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from evo_core.model.recompute import recompute_once


class Layers(nn.Module):
    """Two linear layers, which count their runs and tell whether what is between them is in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8, dtype=torch.float64), nn.Linear(8, 4, dtype=torch.float64)
        self.runs = 0
        self.between: weakref.ref[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        between = self.up(x).exp()
        self.between = weakref.ref(between)
        out: Tensor = x + self.down(between)
        return out


def inputs() -> Tensor:
    return torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4).requires_grad_()


def gradients(layers: Layers, x: Tensor) -> list[Tensor]:
    return [tensor.grad for tensor in (x, *layers.parameters()) if tensor.grad is not None]


def test_of_what_autograd_saves_nothing_is_in_memory_before_the_backward_pass() -> None:
    layers = Layers()
    out = recompute_once(layers, inputs())
    assert out.requires_grad and layers.between is not None and layers.between() is None


def test_a_backward_pass_in_parts_runs_it_once_more_and_makes_the_same_gradients() -> None:
    layers, x = Layers(), inputs()
    layers(x).square().sum().backward()
    whole = gradients(layers, x)
    layers.zero_grad()

    layers.runs, y = 0, inputs()
    _, groups = stage_backward_input([recompute_once(layers, y).square().sum()], None, [y], iter(layers.parameters()))
    assert y.grad is not None and layers.up.weight.grad is None and len(groups) > 1
    stage_backward_weight(iter(layers.parameters()), groups)
    assert layers.runs == 2
    assert all(map(torch.equal, gradients(layers, y), whole)) and len(whole) == 5


def test_a_whole_backward_pass_makes_the_same_gradients() -> None:
    layers, x, y = Layers(), inputs(), inputs()
    layers(x).square().sum().backward()
    whole = gradients(layers, x)
    layers.zero_grad()
    recompute_once(layers, y).square().sum().backward()
    assert all(map(torch.equal, gradients(layers, y), whole)) and layers.runs == 3


def test_what_it_made_again_leaves_memory_with_the_graph() -> None:
    """Also where a function saves what it returns, as a softmax and attention do."""
    made: list[weakref.ref[torch.UntypedStorage]] = []

    def function(x: Tensor) -> Tensor:
        y = x.softmax(1)
        made.append(weakref.ref(y.untyped_storage()))
        return y * y

    x = inputs()
    out = recompute_once(function, x).sum()
    for _ in range(2):
        torch.autograd.grad(out, x, retain_graph=True)
    assert len(made) == 2 and made[0]() is None and made[1]() is not None
    del out
    assert made[1]() is None

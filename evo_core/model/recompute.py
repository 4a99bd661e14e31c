"""Blocks that keep only their input, and run again for a backward pass that comes in parts.

torch.utils.checkpoint runs a block again for every call of the autograd engine. A zero-bubble schedule makes the
gradient of a stage's input in one call, and later those of its weights in one call for each product: with torch's a
block would run ten times. Here it runs again once, and what it computed is kept until the last part is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recompute_once(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and keep only its arguments of what autograd saves in it.

    Args:
        function: draws no random numbers of torch's.
        args: stay as they are.
    """
    again = _Again(function, args)
    with torch.autograd.graph.saved_tensors_hooks(again.leave_out, again.saved):
        return function(*args)


class _Again:
    """A function and its arguments, in place of what autograd saves of it."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._function, self._args = function, args
        self._count = 0
        self._tensors: list[Tensor] = []

    def leave_out(self, tensor: Tensor) -> int:
        """Only count a tensor that autograd would save."""
        self._count += 1
        return self._count - 1

    def saved(self, number: int) -> Tensor:
        """The number-th of them, for which the function runs again where none is there."""
        if not self._tensors:
            self._tensors = self._run()
        return self._tensors[number]

    def _run(self) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor.detach())
            if len(found) == self._count:
                raise _Enough  # nothing behind it is needed, such as what a last layer would send
            return found[-1]  # a layer that saved its own output would keep itself in memory for ever

        try:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self._function(*self._args)
        except _Enough:
            pass
        return found


class _Enough(Exception):
    pass

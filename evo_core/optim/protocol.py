"""What training, checkpoints and the start-up log ask of an optimizer; its parameters may be cut in any way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from evo_core.optim.loss_scaler import LossScaler
from evo_core.placement import Placed


class Reduced(NamedTuple):
    """What all ranks have together.

    Attributes:
        norm: of the gradients.
        totals: the caller's sums, on the CPU.
    """

    norm: float
    totals: torch.Tensor


class Optimizer(Protocol):
    """A step is ``begin``, ``backward`` for each micro-batch, ``reduce``, ``step``.

    Where a schedule makes the gradients, a backward pass is its own: of `scaled` losses, with `final` before the last
    one of some parameters, and `collect` behind one that sets gradients without calling their hooks.

    Every rank calls every method, in one order; `state` and `restored` ask nothing of the other ranks.

    Attributes:
        scaler: the loss scale.
        updates: updates behind Adam's moments.
        dtype: of the moments and master values.
    """

    scaler: LossScaler
    updates: int
    dtype: torch.dtype

    @property
    def share(self) -> int:
        """Elements of the parameters that this rank updates."""

    def begin(self) -> None:
        """Start a step."""

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch.

        Args:
            loss: scalar; the gradients of a step are the sum over micro-batches, averaged over data ranks.
            last: whether it is the step's last, after which nothing is added any more.
        """

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss, scalar, as its gradients are to be made: times the loss scale."""

    def final(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients of these that are made from now on are their last of the step."""

    def collect(self) -> None:
        """Take the gradients that parameters have, in whatever way they came there."""

    def reduce(self, totals: torch.Tensor) -> Reduced:
        """Finish the reduction; return the global norm of the gradients, scale divided out, before clipping, and the
        caller's sums over all ranks.

        Args:
            totals: [n] float64, any sums of the caller's.
        """

    def step(self, lr: float, beta2: float) -> bool:
        """Update the parameters, unless the norm that `reduce` found is inf or nan; tell whether it did."""

    def wait_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """Wait until these have the values of the last update."""

    def settle(self) -> None:
        """Wait until all have: before anything but training reads them."""

    def state(self) -> Mapping[str, Placed]:
        """What this rank holds of the tensors that a checkpoint keeps, by name; loading writes into it."""

    def held(self) -> Mapping[str, Sequence[torch.Tensor]]:
        """The tensors of its own by what they are for; some may be views of others, or of the parameters."""

    def restored(self, *, updates: int, masters: Collection[str] = ()) -> None:
        """Make the optimizer fit what a checkpoint has put into the parameters and into `state`.

        Args:
            updates: number of updates behind the loaded moments, 0 for fresh ones.
            masters: names of the parameters whose master values it put into `state`; of the others they are taken from
                the parameters.
        """

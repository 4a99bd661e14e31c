"""Between backward and update, the same for every optimizer: the loss scale, the global norm, clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from evo_core.errors import ConfigError
from evo_core.optim.grad_norm import Counted, own_square
from evo_core.optim.groups import ParameterGroup
from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.protocol import Reduced
from evo_core.parallel.collectives import all_reduce, failing_together
from evo_core.parallel.mesh import Axis


class Scaled:
    """Gradients of a scaled loss, whose norm is known on every rank before any is used.

    Args:
        world: the ranks over which the norm is summed.
        scaler: the loss scale; None for none.
        clip_grad_norm: largest global gradient norm; 0 clips nothing.

    Attributes:
        grad_norm: of the last gradients, scale divided out.
    """

    def __init__(self, world: Axis, scaler: LossScaler | None, clip_grad_norm: float) -> None:
        self.world, self.clip_grad_norm = world, clip_grad_norm
        self.scaler = scaler or LossScaler(enabled=False)
        self.grad_norm = 0.0

    def scaled(self, loss: Tensor) -> Tensor:
        """A loss, scalar, as its gradients are to be made: times the loss scale."""
        return loss * self.scaler.scale if self.scaler.enabled else loss

    def reduced(self, parts: Iterable[Counted], totals: Tensor) -> Reduced:
        """The global norm and the caller's sums, in one message of all ranks; waits for a GPU.

        Args:
            parts: what the gradients on this rank count.
            totals: [n] float64, on any device.
        """
        message = torch.cat([totals, own_square(parts).view(1).to(totals.device)])
        if self.world.size > 1:
            all_reduce(message, self.world.group).wait()
        *_, square_sum = (message := message.cpu()).tolist()
        self.grad_norm = square_sum**0.5 / self.scaler.scale
        return Reduced(self.grad_norm, message[:-1])

    def factor(self) -> float | None:
        """What the gradients are multiplied with for the update, scale and clipping in one; None where they are inf or
        nan, and there is no update. Tells the loss scale."""
        overflow = not (self.grad_norm < float("inf"))  # nan compares false
        factor = 1.0 / self.scaler.scale
        self.scaler.update(overflow=overflow)
        if overflow:
            return None
        if self.clip_grad_norm > 0:
            factor *= min(1.0, self.clip_grad_norm / (self.grad_norm + 1e-6))
        return factor


def trained(groups: Iterable[ParameterGroup], world: Axis) -> list[nn.Parameter]:
    """The parameters of groups; every rank must call it.

    Raises:
        ConfigError: there are none on a rank; on every rank.
    """
    params = [param for group in groups for param in group.parameters.values()]
    with failing_together(world.group):  # a stage of a pipeline may be the only one without
        if not params:
            where = f" on rank {world.rank}" if world.size > 1 else ""
            hint = "the model's code sets requires_grad: leave it True on what is to be trained"
            raise ConfigError(f"no parameter of this model is trained{where}", key="model_type", hint=hint)
    return params


class Rates(NamedTuple):
    """What an update by AdamW is made with (Loshchilov and Hutter 2019)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def fused_adamw(
    masters: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    counts: list[Tensor],
    rates: Rates,
) -> None:
    """Update values in place, from gradients and moments of their shapes, by torch's fused kernel.

    Args:
        counts: updates behind each one's moments, a scalar in float32; the kernel counts up.
    """
    adamw(
        masters,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        counts,
        fused=True,
        amsgrad=False,
        maximize=False,
        **rates._asdict(),
    )

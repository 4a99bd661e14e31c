"""AdamW over the shares of a model whose parameters data ranks share (`evo_core.parallel.sharded`).

Gradients come here summed over the data ranks and averaged: torch's FSDP does that in the backward pass of each
micro-batch. What is left is to sum those of parameters that tensor ranks hold alike, the norm, and the update, in the
memory of the shares themselves: they are the master values.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from evo_core.optim.bucket import sum_repeated, together
from evo_core.optim.grad_norm import Counted, counted
from evo_core.optim.groups import ParameterGroup
from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.protocol import Reduced
from evo_core.optim.scaled import Rates, Scaled, fused_adamw, trained
from evo_core.parallel.collectives import all_reduce, of_first
from evo_core.parallel.mesh import Mesh
from evo_core.placement import Placed, Placement, local_of, shards_of


@dataclass
class _Share:
    """What this rank updates of a parameter.

    Attributes:
        master: [rows here, ...] the parameter's own memory.
        placement: where it lies in the whole one.
        exp_avg, exp_avg_sq: of its shape.
        count: updates behind them, as the fused kernel wants it: one for each.
    """

    name: str
    param: nn.Parameter
    master: Tensor
    placement: Placement
    exp_avg: Tensor
    exp_avg_sq: Tensor
    count: Tensor

    @property
    def grad(self) -> Tensor:
        """Of its shape; zeros where no loss depended on the parameter."""
        if self.param.grad is None:
            self.param.grad = torch.zeros_like(self.param)
        return local_of(self.param.grad)

    def placed_grad(self) -> Placed:
        """Its gradient, where it lies."""
        return Placed(self.grad, self.placement)


class FsdpAdamW(Scaled):
    """See `evo_core.optim.protocol.Optimizer`. Creating it gives every replica the parameters of the first.

    Args:
        model: after `evo_core.parallel.sharded.shard`.
        groups: its parameters that are trained, each in one group.
        mesh: the ranks.
        beta1: Adam's; its beta2 follows a schedule and is given at each step.
        eps: Adam's.
        weight_decay: decoupled, for every parameter of the groups that it is for.
        clip_grad_norm: largest global gradient norm; 0 clips nothing.
        scaler: the loss scale; None for none.

    Raises:
        ConfigError: there is nothing to train; on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        mesh: Mesh,
        *,
        beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_grad_norm: float = 0.0,
        scaler: LossScaler | None = None,
    ) -> None:
        super().__init__(mesh.world, scaler, clip_grad_norm)
        assert isinstance(model, FSDPModule)
        self._model, self._replicas = model, mesh.replica
        self._done = (mesh.zero, mesh.replica)
        self.beta1, self.eps, self.weight_decay = beta1, eps, weight_decay
        self.groups, self.updates = tuple(groups), 0
        params = trained(self.groups, mesh.world)
        self.dtype = functools.reduce(torch.promote_types, {param.dtype for param in params})
        shards = shards_of(model)
        assert shards is not None
        self._narrow = {name for name, dtype in shards.dtypes.items() if dtype != self.dtype}
        self._of_group = [
            [_share(name, param, shards.placements[name]) for name, param in group.parameters.items()]
            for group in self.groups
        ]
        for group, shares in zip(self.groups, self._of_group, strict=True):
            for axis in group.replica:
                together([share.master for share in shares], axis, of_first)

    @property
    def share(self) -> int:
        """Elements of the parameters that this rank updates."""
        return sum(share.master.numel() for share in self._shares())

    def begin(self) -> None:
        """See `Optimizer`."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Optimizer`. Gradients are summed within a ZeRO group at once, and over replicas with the last ones."""
        if self._replicas.size > 1:
            self._model.set_requires_all_reduce(last)
        self.scaled(loss).backward()

    def final(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Optimizer`."""

    def collect(self) -> None:
        """See `Optimizer`."""

    def reduce(self, totals: Tensor) -> Reduced:
        """See `Optimizer`."""
        parts: list[Counted] = []
        for group, shares in zip(self.groups, self._of_group, strict=True):
            self._sum_over_tensor_ranks(group, shares)
            for share in shares:
                parts += counted(share.grad, share.placed_grad().pieces(), 1)
        return self.reduced(parts, totals)

    def _sum_over_tensor_ranks(self, group: ParameterGroup, shares: Sequence[_Share]) -> None:
        grads = [share.grad for share in shares]
        for axis in (axis for axis in group.reduce if axis not in self._done):
            together(grads, axis, all_reduce)
        for axis in group.alike:
            together(grads, axis, of_first)
        if group.repeated is not None:
            sum_repeated((share.placed_grad() for share in shares), group.repeated)

    def gradients(self) -> dict[str, Placed]:
        """Between `reduce` and `step`: this rank's share of each parameter's gradient, in `dtype`, as one process
        would have it: the loss scale divided out."""
        scale = self.scaler.scale
        return {share.name: Placed(share.grad / scale, share.placement) for share in self._shares()}

    @torch.no_grad()
    def step(self, lr: float, beta2: float) -> bool:
        """See `Optimizer`."""
        factor = self.factor()
        if factor is not None:
            for group, shares in zip(self.groups, self._of_group, strict=True):
                some = [share for share in shares if share.master.numel()]
                if some:
                    self._adamw(some, factor, lr, beta2, self.weight_decay if group.decays else 0.0)
            self.updates += 1
        for share in self._shares():
            share.param.grad = None
        return factor is not None

    def _adamw(self, shares: Sequence[_Share], factor: float, lr: float, beta2: float, weight_decay: float) -> None:
        grads = [share.grad for share in shares]
        if factor != 1.0:
            torch._foreach_mul_(grads, factor)
        fused_adamw(
            [share.master for share in shares],
            grads,
            [share.exp_avg for share in shares],
            [share.exp_avg_sq for share in shares],
            [share.count for share in shares],
            Rates(lr, self.beta1, beta2, self.eps, weight_decay),
        )

    def wait_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Optimizer`: parameters are fetched when they are used."""

    def settle(self) -> None:
        """See `Optimizer`."""

    def state(self) -> dict[str, Placed]:
        """See `Zero1AdamW.state`: the same names and shapes. A master value is the parameter's share itself."""
        state: dict[str, Placed] = {}
        for share in self._shares():
            state[f"exp_avg.{share.name}"] = Placed(share.exp_avg, share.placement)
            state[f"exp_avg_sq.{share.name}"] = Placed(share.exp_avg_sq, share.placement)
            if share.name in self._narrow:
                state[f"master.{share.name}"] = Placed(share.master, share.placement)
        return state

    def held(self) -> dict[str, list[Tensor]]:
        """See `Optimizer.held`."""
        moments = [tensor for share in self._shares() for tensor in (share.exp_avg, share.exp_avg_sq, share.count)]
        return {"gradients": [], "master values": [], "moments": moments}

    def restored(self, *, updates: int, masters: Collection[str] = ()) -> None:
        """See `Optimizer`."""
        self.updates = updates
        for share in self._shares():
            share.count.fill_(float(updates))

    def _shares(self) -> Iterator[_Share]:
        return itertools.chain.from_iterable(self._of_group)


def _share(name: str, param: nn.Parameter, placement: Placement) -> _Share:
    master = local_of(param.detach())
    count = torch.zeros((), dtype=torch.float32, device=master.device)
    return _Share(name, param, master, placement, torch.zeros_like(master), torch.zeros_like(master), count)

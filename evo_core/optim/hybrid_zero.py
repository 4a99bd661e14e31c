"""ZeRO-1 AdamW: every rank of a ZeRO group updates its share of the parameters and hands it to the others.

The life of a step, the same for one process and for many::

    optimizer.begin()
    for batch in micro_batches:
        optimizer.backward(loss / micro_num, last=...)    # gradients go to fp32 buckets; the last one reduces them
    norm = optimizer.reduce(totals)                       # gradient norm and the caller's sums in one all-reduce
    updated = optimizer.step(lr, beta2)                   # scale, clip, AdamW on the share, gather; or skip

Rajbhandari et al. 2020 (ZeRO, stage 1); Loshchilov and Hutter 2019 (AdamW). Accumulation, reduction and master values
are in ``promote_types(dtype, float32)``: fp32 is a floor, so a float64 model is trained in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim.adamw import adamw

from evo_core.optim.bucket import Slot, make_buckets
from evo_core.optim.loss_scaler import LossScaler
from evo_core.parallel.mesh import Mesh

_NORM_ROW = 4096


def sum_of_squares(flat: torch.Tensor) -> torch.Tensor:
    """Sum of squares of a vector, as a float64 scalar.

    Rows of 4096 are summed in the vector's own type and then together in float64: on a CPU ten times faster than
    float64 throughout, and 10^-8 off it, where one long fp32 sum is 10^-4 off.
    """
    whole = flat.numel() // _NORM_ROW * _NORM_ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_ROW), dim=1).double()
    return rows.square().sum() + torch.linalg.vector_norm(flat[whole:]).double().square()


class HybridZeroOptimizer:
    """AdamW over the named parameters of a model, sharded over the ZeRO group of `mesh`.

    Creating it gives every rank the parameters of data rank 0.

    Args:
        parameters: as `nn.Module.named_parameters` gives them; those without gradients are left alone.
        mesh: the ranks.
        beta1: Adam's; its beta2 follows a schedule and is given at each step.
        eps: Adam's.
        weight_decay: decoupled, for every parameter, norms and biases included.
        bucket_size: elements in one gradient message.
        clip_grad_norm: largest global gradient norm; 0 clips nothing.
        scaler: the loss scale; None for none.
        overlap: start reducing a bucket while backward still works on others.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        mesh: Mesh,
        *,
        beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bucket_size: int = 512 * 1024 * 1024,
        clip_grad_norm: float = 0.0,
        scaler: LossScaler | None = None,
        overlap: bool = True,
    ) -> None:
        named = [(name, param) for name, param in parameters if param.requires_grad]
        self.mesh, self.clip_grad_norm, self.overlap = mesh, clip_grad_norm, overlap
        self.beta1, self.eps, self.weight_decay = beta1, eps, weight_decay
        self.scaler = scaler or LossScaler(enabled=False)
        self.updates = 0
        self.grad_norm = 0.0

        dtypes = {param.dtype for _, param in named}
        self.dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        self.buckets = make_buckets(named, mesh, bucket_size, self.dtype)
        self._share_parameters()
        device = named[0][1].device
        width = sum(bucket.width for bucket in self.buckets)
        self.master = torch.zeros(width, dtype=self.dtype, device=device)
        self.grad = torch.zeros_like(self.master)
        start = 0
        for bucket in self.buckets:
            part = slice(start, start + bucket.width)
            bucket.attach(self.master[part], self.grad[part])
            start += bucket.width

        self.exp_avg = torch.zeros_like(self.master)
        self.exp_avg_sq = torch.zeros_like(self.master)
        self._count = torch.zeros((), dtype=torch.float32, device=device)

        self._reducing = False
        self._missing = [0] * len(self.buckets)
        self._launched = 0
        for index, bucket in enumerate(self.buckets):
            for slot in bucket.slots:
                hook = functools.partial(self._on_gradient, index, slot)
                slot.param.register_post_accumulate_grad_hook(hook)

    def begin(self) -> None:
        """Start a step."""
        self._reducing, self._launched = False, 0

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch.

        Args:
            loss: scalar; the gradients of a step are the sum over micro-batches, averaged over data ranks.
            last: whether it is the step's last, after which nothing is added any more.
        """
        if last:
            self._reducing = self.overlap
            self._missing = [len(bucket.slots) for bucket in self.buckets]
        (loss * self.scaler.scale if self.scaler.enabled else loss).backward()

    def reduce(self, totals: torch.Tensor) -> float:
        """Finish the reduction; return the global norm of the gradients, scale divided out, before clipping.

        Args:
            totals: [n] float64, any sums of the caller's: summed in place over all ranks, in the same message
                as the norm.
        """
        self._launch(len(self.buckets))
        self._reducing = False
        for bucket in self.buckets:
            bucket.finish_reduce()
        square = sum_of_squares(self.grad) / self.mesh.replica.size  # each replica of a share adds it once
        message = torch.cat([totals, square.view(1).to(totals.device)])
        if self.mesh.world.size > 1:
            dist.all_reduce(message, group=self.mesh.world.group)
        totals.copy_(message[:-1])
        self.grad_norm = float(message[-1]) ** 0.5 / (self.scaler.scale * self.mesh.data.size)
        return self.grad_norm

    def step(self, lr: float, beta2: float) -> bool:
        """Update the parameters, unless the norm that `reduce` found is inf or nan; tell whether it did.

        Args:
            lr: learning rate of this update.
            beta2: Adam's beta2 of this update.
        """
        norm = self.grad_norm
        overflow = not (norm < float("inf"))  # nan compares false
        factor = 1.0 / (self.scaler.scale * self.mesh.data.size)
        self.scaler.update(overflow=overflow)
        if overflow:
            return False
        if self.clip_grad_norm > 0:
            factor *= min(1.0, self.clip_grad_norm / (norm + 1e-6))
        if factor != 1.0:
            self.grad.mul_(factor)
        self._adamw(lr, beta2)
        self.updates += 1
        self._publish()
        return True

    def state(self) -> dict[str, DTensor]:
        """The optimizer's tensors by parameter name, for `torch.distributed.checkpoint`.

        ``exp_avg.<name>``, ``exp_avg_sq.<name>`` and, where the parameter's own type is narrower, ``master.<name>``:
        one-dimensional, sharded as `torch.chunk` cuts them. Loading writes into the optimizer's own memory.
        """
        sources = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "master": self.master}
        state = {}
        start = 0
        for bucket in self.buckets:
            for kind, flat in sources.items():
                if kind == "master" and bucket.dtype == self.dtype:
                    continue  # the parameter is its own master value
                for slot in bucket.slots:
                    state[f"{kind}.{slot.name}"] = self._shard(slot, flat[start : start + bucket.width])
            start += bucket.width
        return state

    def restored(self, *, updates: int, master: bool) -> None:
        """Make the optimizer fit tensors that a checkpoint has put into the parameters and into `state`.

        Args:
            updates: number of updates behind the loaded moments, 0 for fresh ones.
            master: whether the checkpoint held master values; those it did not are taken from the parameters.
        """
        self.updates = updates
        self._count.fill_(float(updates))
        for bucket in self.buckets:
            if not (master and bucket.dtype != self.dtype):
                bucket.read_parameters()

    @torch.no_grad()
    def _adamw(self, lr: float, beta2: float) -> None:
        """One fused kernel over the rank's whole share."""
        adamw(
            [self.master],
            [self.grad],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self._count],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _on_gradient(self, index: int, slot: Slot, param: torch.Tensor) -> None:
        """After backward has made one parameter's gradient: keep it, and reduce the bucket if it was the last."""
        self.buckets[index].accumulate(slot)
        self._missing[index] -= 1
        if self._reducing:
            # Buckets are reduced in one order on every rank, whatever order gradients come in.
            ready = self._launched
            while ready < len(self.buckets) and self._missing[ready] == 0:
                ready += 1
            self._launch(ready)

    def _launch(self, upto: int) -> None:
        for bucket in self.buckets[self._launched : upto]:
            bucket.reduce()
        self._launched = max(self._launched, upto)

    def _publish(self) -> None:
        for bucket in self.buckets:
            bucket.gather()
        for bucket in self.buckets:
            bucket.finish_gather()

    def _share_parameters(self) -> None:
        """Give every data rank the parameters of the first one: replicas must start alike, bit for bit."""
        if self.mesh.data.size == 1:
            return
        source = dist.get_global_rank(self.mesh.data.group, 0)
        for bucket in self.buckets:
            flat = torch.cat([slot.param.detach().reshape(-1) for slot in bucket.slots])
            dist.broadcast(flat, source, group=self.mesh.data.group)
            for slot, values in zip(
                bucket.slots, flat.split([slot.param.numel() for slot in bucket.slots]), strict=True
            ):
                slot.param.data.copy_(values.view(slot.param.shape))

    def _shard(self, slot: Slot, row: torch.Tensor) -> DTensor:
        """The rank's slice of one parameter's state, padding cut off, as a piece of a tensor [numel]."""
        local = row[slot.start : slot.start + slot.owned(self.mesh.zero.rank)]
        numel = torch.Size([slot.param.numel()])
        return DTensor.from_local(
            local,
            self.mesh.devices["replica", "zero"],
            [Replicate(), Shard(0)],
            run_check=False,
            shape=numel,
            stride=(1,),
        )

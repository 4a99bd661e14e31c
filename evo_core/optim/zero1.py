"""ZeRO-1: every rank of a ZeRO axis updates its share of the parameters, by AdamW and matrices by Muon if they are to
be, and hands it to the others.

The life of a step, the same for one process and for many::

    optimizer.begin()
    for batch in micro_batches:
        optimizer.backward(loss / micro_num, last=...)    # gradients go to fp32 buckets; the last one reduces them
    norm, sums = optimizer.reduce(totals)                 # gradient norm and the caller's sums in one all-reduce
    updated = optimizer.step(lr, beta2)                   # scale, clip, update the share, gather; or skip
    optimizer.wait_for(parameters)                        # where they are read, if the gather is overlapped with it

A pipeline's schedule makes the gradients by itself: see `Optimizer`.

Rajbhandari et al. 2020 (ZeRO, stage 1); Loshchilov and Hutter 2019 (AdamW). Accumulation, reduction and master values
are in ``promote_types(dtype, float32)``: fp32 is a floor, so a float64 model is trained in float64.

What it does not know is how the model is cut: each parameter group says over which ranks its gradients are summed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import nn

from evo_core.errors import ConfigError
from evo_core.optim.bucket import Bucket, make_buckets
from evo_core.optim.grad_norm import counted
from evo_core.optim.groups import ParameterGroup
from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.matrix_updates import MatrixUpdates
from evo_core.optim.muon import Muon
from evo_core.optim.protocol import Reduced
from evo_core.optim.publishing import Publishing
from evo_core.optim.scaled import Rates, Scaled, fused_adamw, trained
from evo_core.optim.slots import Slot
from evo_core.parallel.mesh import Axis
from evo_core.placement import Piece, Placed


class Zero1AdamW(Scaled):
    """AdamW over groups of parameters, and Muon over those that are matrices; the state of each is cut over the group's
    ZeRO axis.

    Creating it gives every rank the parameters of the first of those that hold the same.

    Args:
        groups: the parameters that are trained, each in one group.
        world: the ranks over which the norm is summed.
        beta1: Adam's; its beta2 follows a schedule and is given at each step.
        eps: Adam's.
        weight_decay: decoupled, for every parameter of the groups that it is for.
        bucket_size: elements in one gradient message.
        clip_grad_norm: largest global gradient norm; 0 clips nothing.
        scaler: the loss scale; None for none.
        overlap: start reducing a bucket while backward still works on others. Each parameter's gradient must then be
            whole when backward first hands it over (`reduce` refuses others).
        order: names of the parameters as the model uses them, of which backward makes gradients from the last to the
            first; with `overlap` buckets of all groups are reduced in the order in which they are complete. Where it
            is empty, one group behind another. Updated parameters are gathered in this order.
        overlap_params: leave it to `wait_for` and `settle` to wait for updated parameters; else `step` does.
        gather_size: elements of parameters that are gathered at once.
        muon: how the groups that have `matrices` are updated; None: as by default.

    Raises:
        ConfigError: there is nothing to train on a rank; on every rank.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        world: Axis,
        *,
        beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bucket_size: int = 512 * 1024 * 1024,
        clip_grad_norm: float = 0.0,
        scaler: LossScaler | None = None,
        overlap: bool = True,
        order: Iterable[str] = (),
        overlap_params: bool = False,
        gather_size: int = 512 * 1024 * 1024,
        muon: Muon | None = None,
    ) -> None:
        super().__init__(world, scaler, clip_grad_norm)
        self.groups = tuple(sorted(groups, key=lambda group: (group.matrices is not None, not group.decays)))
        self.overlap = overlap and world.size > 1
        self.beta1, self.eps, self.weight_decay = beta1, eps, weight_decay
        self.updates = 0

        params = trained(self.groups, world)
        self.dtype = functools.reduce(torch.promote_types, {param.dtype for param in params}, torch.float32)
        buckets_of = [make_buckets(group, bucket_size, self.dtype) for group in self.groups]
        self.buckets = list(itertools.chain.from_iterable(buckets_of))
        device = params[0].device
        self.master = torch.zeros(sum(bucket.width for bucket in self.buckets), dtype=self.dtype, device=device)
        self.grad = torch.zeros_like(self.master)
        sizes = [sum(bucket.width for bucket in buckets) for buckets in buckets_of]
        of_adamw = [size if group.matrices is None else 0 for size, group in zip(sizes, self.groups, strict=True)]
        self.exp_avg = self.master.new_zeros(sum(of_adamw))
        self.exp_avg_sq = torch.zeros_like(self.exp_avg)
        self._counts = [torch.zeros((), dtype=torch.float32, device=device) for _ in range(2)]

        for bucket, part in self._parts():
            bucket.share_parameters()
            bucket.attach(self.master[part], self.grad[part])
        decaying = sum(size for size, group in zip(of_adamw, self.groups, strict=True) if group.decays)
        self._by_decay = (slice(0, decaying), slice(decaying, sum(of_adamw)))
        self.matrices = MatrixUpdates(
            [bucket for bucket in self.buckets if bucket.group.matrices is not None], muon or Muon()
        )
        self._grads = list(zip(self.groups, self.grad.split(sizes), strict=True))
        self._counted = [
            part
            for (group, grad), buckets in zip(self._grads, buckets_of, strict=True)
            for part in counted(grad, _gradient_pieces(buckets), group.divisor)
        ]

        # The last gradient of a bucket is that of its first parameter: a group of the norms of all blocks is complete
        # in the end, and must keep no other waiting.
        place = {name: number for number, name in enumerate(order)}
        self._turns = sorted(self.buckets, key=lambda bucket: -min(place.get(slot.name, 0) for slot in bucket.slots))
        self.publishing = Publishing(self.buckets, place, gather_size)
        self._overlaps_params = overlap_params
        self._reducing = False
        self._final: set[int] = set()
        self._missing: list[set[str]] = [set() for _ in self._turns]
        self._launched = 0
        for index, bucket in enumerate(self._turns):
            for slot in bucket.slots:
                hook = functools.partial(self._on_gradient, index, slot)
                slot.param.register_post_accumulate_grad_hook(hook)

    @property
    def share(self) -> int:
        """Elements of the parameters that this rank updates."""
        return sum(bucket.owned() for bucket in self.buckets)

    def begin(self) -> None:
        """Start a step."""
        self._reducing, self._launched = self.overlap, 0
        self._final.clear()
        self._missing = [{slot.name for slot in bucket.slots} for bucket in self._turns] if self.overlap else []

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch.

        Args:
            loss: scalar; the gradients of a step are the sum over micro-batches, averaged over data ranks.
            last: whether it is the step's last, after which nothing is added any more.
        """
        if last:
            self.final(slot.param for bucket in self.buckets for slot in bucket.slots)
        self.scaled(loss).backward()

    def final(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients of these that are made from now on are their last of the step.

        With `overlap` a bucket is reduced as soon as it has the last gradients of all its parameters.
        """
        if self.overlap:
            self._final.update(map(id, parameters))

    def collect(self) -> None:
        """Take the gradients that parameters have, in whatever way they came there: as from hooks."""
        for index, bucket in enumerate(self._turns):
            for slot in bucket.slots:
                if slot.param.grad is not None:
                    self._on_gradient(index, slot, slot.param)

    def reduce(self, totals: torch.Tensor) -> Reduced:
        """Finish the reduction; return the global norm of the gradients, scale divided out, before clipping, and the
        caller's sums over all ranks. It is the one place of a step that waits for a GPU.

        Args:
            totals: [n] float64, any sums of the caller's, which go in the same message as the norm.

        Raises:
            ConfigError: with `overlap`, a gradient came in parts, the last of them after its bucket was reduced.
        """
        self._launch(len(self._turns))
        self._reducing = False
        for bucket in self.buckets:
            bucket.finish_reduce()
        self._refuse_late()
        return self.reduced(self._counted, totals)

    def gradients(self) -> dict[str, Placed]:
        """Between `reduce` and `step`: this rank's share of each parameter's gradient, in `dtype`, as one process
        would have it: averaged over data ranks, the loss scale divided out."""
        shares: dict[str, Placed] = {}
        for bucket in self.buckets:
            averaged = bucket.grad / (bucket.group.divisor * self.scaler.scale)
            shares |= {slot.name: slot.placed(averaged) for slot in bucket.slots}
        return shares

    def step(self, lr: float, beta2: float) -> bool:
        """Update the parameters, unless the norm that `reduce` found is inf or nan; tell whether it did.

        Args:
            lr: learning rate of this update.
            beta2: Adam's beta2 of this update.
        """
        self.publishing.finish()  # what no forward pass has read
        if (factor := self.factor()) is None:
            return False
        for group, grad in self._grads:
            if factor != group.divisor:
                grad.mul_(factor / group.divisor)
        self._adamw(lr, beta2)
        self.matrices.update(lr, self.weight_decay)
        self.updates += 1
        self.publishing.start()
        if not self._overlaps_params:
            self.publishing.finish()
        return True

    def wait_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """Wait until these have the values of the last update; every rank must ask alike."""
        self.publishing.wait_for(parameters)

    def settle(self) -> None:
        """Wait until all have; every rank must call it."""
        self.publishing.finish()

    def state(self) -> dict[str, Placed]:
        """The optimizer's tensors by parameter name: the rank's share of each, in the optimizer's own memory.

        ``exp_avg.<name>``, ``exp_avg_sq.<name>``, or of a matrix ``momentum.<name>``, and, where the parameter's own
        type is narrower, ``master.<name>``, each a part of a tensor of the parameter's shape, in `dtype`.
        """
        state = {}
        for bucket, part in self._parts():
            rows = {"exp_avg": self.exp_avg[part], "exp_avg_sq": self.exp_avg_sq[part]}
            if bucket.group.matrices is not None:
                rows = {"momentum": self.matrices.momentum_of(bucket)}
            if bucket.dtype != self.dtype:  # else the parameter is its own master value
                rows["master"] = bucket.master
            for kind, row in rows.items():
                for slot in bucket.slots:
                    state[f"{kind}.{slot.name}"] = slot.placed(row)
        return state

    def held(self) -> dict[str, list[torch.Tensor]]:
        """See `Optimizer.held`."""
        return {
            "gradients": [self.grad, *(bucket.grads for bucket in self.buckets)],
            "master values": [self.master],
            "moments": [self.exp_avg, self.exp_avg_sq, self.matrices.momentum, *self._counts],
        }

    def restored(self, *, updates: int, masters: Collection[str] = ()) -> None:
        """Make the optimizer fit tensors that a checkpoint has put into the parameters and into `state`.

        Args:
            updates: number of updates behind the loaded moments, 0 for fresh ones.
            masters: names of the parameters whose master values it put into `state`; of the others they are taken from
                the parameters.
        """
        self.updates = updates
        for count in self._counts:
            count.fill_(float(updates))
        for bucket in self.buckets:
            bucket.read_parameters(but=masters)

    def _parts(self) -> Iterator[tuple[Bucket, slice]]:
        """Each bucket with its part of the rank's vectors, in which they lie one behind another."""
        start = 0
        for bucket in self.buckets:
            yield bucket, slice(start, start + bucket.width)
            start += bucket.width

    @torch.no_grad()
    def _adamw(self, lr: float, beta2: float) -> None:
        """One fused kernel over all of the rank's share of AdamW's that decays, and one over the rest."""
        for part, weight_decay, count in zip(self._by_decay, (self.weight_decay, 0.0), self._counts, strict=True):
            if part.stop == part.start:
                continue
            rates = Rates(lr, self.beta1, beta2, self.eps, weight_decay)
            fused_adamw(
                [self.master[part]], [self.grad[part]], [self.exp_avg[part]], [self.exp_avg_sq[part]], [count], rates
            )

    def _on_gradient(self, index: int, slot: Slot, param: torch.Tensor) -> None:
        """After backward has made one parameter's gradient: keep it, and reduce the bucket if it was the last."""
        if index < self._launched:
            return  # too late: it stays where it is, for `reduce` to find
        self._turns[index].accumulate(slot)
        if self._reducing and id(param) in self._final:
            self._missing[index].discard(slot.name)
            # Buckets are reduced in one order on every rank, whatever order gradients come in.
            ready = self._launched
            while ready < len(self._turns) and not self._missing[ready]:
                ready += 1
            self._launch(ready)

    def _refuse_late(self) -> None:
        """Refuse gradients that came after their bucket was reduced: without them the sum is wrong."""
        late = [slot.name for bucket in self.buckets for slot in bucket.slots if slot.param.grad is not None]
        if late:
            raise ConfigError(
                f"the gradient of {late[0]} came in parts, as from checkpointing with use_reentrant=True",
                key="hybrid_zero_optimizer.overlap_sync_grad",
                hint="set it to false, or checkpoint with use_reentrant=False",
            )

    def _launch(self, upto: int) -> None:
        for bucket in self._turns[self._launched : upto]:
            bucket.reduce()
        self._launched = max(self._launched, upto)


def _gradient_pieces(buckets: Iterable[Bucket]) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Each piece of the rank's shares, with the gradients in it."""
    for bucket in buckets:
        for slot in bucket.slots:
            yield from slot.placed(bucket.grad).pieces()

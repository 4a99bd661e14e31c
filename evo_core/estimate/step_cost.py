"""What a step holds and sends on this rank, counted while it runs: on real ranks, or on one with imagined others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.data.loader.batch import Batch
from evo_core.estimate.costs import RankCost
from evo_core.estimate.fetched import Fetched
from evo_core.estimate.kept import Kept, key
from evo_core.model.decoder import Decoder
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.collectives import Traffic, counting
from evo_core.parallel.pipeline.orders import Pass
from evo_core.parallel.pipeline.stages import Pipeline
from evo_core.parallel.weight.blocks import gathering_of
from evo_core.placement import local_of
from evo_core.train.held_memory import held_bytes
from evo_core.train.metrics import StepTotals
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import make_model
from evo_core.train.step import TrainStep
from evo_core.train.throughput import Throughput

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.mesh import Mesh


Sent = Mapping[tuple[str, str], float]
"""Bytes by (collective, axis)."""


_PARTS = {"ends": "pipeline", "tensor run": "tensor"}
"""Axes that `Degrees` knows nothing of, by the one that they are a part of."""


@dataclass(frozen=True)
class Counted:
    """What a step held and sent.

    Attributes:
        held: bytes, by the names of `RankCost`; of its buffers ``rooms`` of ZeRO's messages and the ``pool`` of isp's.
        sent: in the step.
        in_passes: of these, what was sent before the last backward pass was done.
        passes: of a pipeline, by how much each kind of pass of a stage raised what autograd keeps: at most while it was
            at work, and behind it.
        operations: of the products of Muon's update.
    """

    held: Mapping[str, float]
    sent: Sent
    in_passes: Sent
    passes: Mapping[tuple[Pass, int], tuple[float, float]]
    operations: float = 0.0

    def with_rooms(self, rooms: float) -> Counted:
        """With another size of ZeRO's messages."""
        return replace(self, held={**self.held, "rooms": rooms})

    def with_update(self, update: Counted) -> Counted:
        """With the states and the messages of another's optimizer, all of which are behind the passes."""
        states = {name: update.held[name] for name in ("gradients", "master", "moments", "rooms")}
        in_passes = {key: size for key, size in self.sent.items() if key in self.in_passes}
        sent = {**update.sent, **in_passes}
        return replace(self, held={**self.held, **states}, sent=sent, operations=update.operations)

    def cost(self, rank: int) -> RankCost:
        """As the cost of a rank, in whole bytes."""
        held = {name: round(size) for name, size in self.held.items()}
        buffers = held.pop("rooms") + held.pop("pool")
        sent = {key: round(size) for key, size in self.sent.items()}
        return RankCost(rank=rank, buffers=buffers, sent=sent, operations=self.operations, **held)


class CountedStep:
    """The model and the optimizer of this rank, and steps that are counted.

    Args:
        cfg: the job; held-out data of it are not read.
        mesh: its ranks.
        drawn: whether to draw first weights; else they are whatever is in memory.
    """

    def __init__(self, cfg: TrainConfig, mesh: Mesh, *, drawn: bool) -> None:
        cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"valid_folder": None})})
        self._mesh, device = mesh, torch.device("cpu")
        self.model = make_model(cfg, mesh, device, drawn=drawn)
        self.optimizer = make_optimizer(cfg, self.model, mesh)
        speed = Throughput.of(cfg, world_size=mesh.world.size, dp=mesh.data.size)
        self._step = TrainStep(cfg, mesh, self.model, self.optimizer, speed=speed, types=["all"], device=device)

    def run(self, batch: Batch, max_seqlen: int) -> RankCost:
        """Train on a batch, and say what that held and sent; every rank must call it.

        Args:
            batch: this rank's, of one type of data.
            max_seqlen: tokens of its longest document.
        """
        return self.counted(batch, max_seqlen).cost(self._mesh.world.rank)

    def counted(self, batch: Batch, max_seqlen: int) -> Counted:
        """The same in more detail."""
        known = {key(tensor) for tensor in (batch.input_ids, batch.labels, batch.positions, batch.type_ids)}
        known |= {key(tensor) for tensor in (*batch.cu_seqlens, *self.model.buffers())}
        known |= {key(local_of(parameter.detach())) for parameter in self.model.parameters()}
        passes: dict[tuple[Pass, int], tuple[int, int]] = {}
        with counting() as traffic:
            fetching = Fetched(self._mesh, traffic)
            kept = Kept(lambda tensor: key(tensor) in known or key(tensor) in fetching.whole)
            if isinstance(self._step.passes, Pipeline):
                self._step.passes.after_pass = lambda work: passes.update({(work.kind, work.stage): kept.lap()})
            self.optimizer.begin()
            with kept.counting(self._blocks()), fetching if self._mesh.shards else nullcontext():
                totals = self._step.forward_backward(batch, 0, max_seqlen)
            in_passes = self._by_axis(traffic)
            self.optimizer.reduce(totals.vector)
            held = held_bytes(self.model, self.optimizer)  # before gradients go
            self.optimizer.step(1e-3, 0.95)
            self.optimizer.settle()
        gathering = gathering_of(self.model)
        fetched = fetching.peak if gathering is None else gathering.buffers.peak
        stays = gathering is not None and gathering.buffers.pool
        figures = {
            **self._lasting(held),
            "gathered": 0 if stays else fetched,
            "pool": fetched if stays else 0,
            "activations": kept.peak,
        }
        return Counted(figures, self._by_axis(traffic), in_passes, passes, self._operations)

    def update(self) -> Counted:
        """What the optimizer alone holds and sends in a step, without passes and without updating; every rank must
        call it."""
        assert isinstance(self.optimizer, Zero1AdamW)
        with counting() as traffic:
            self.optimizer.begin()
            self.optimizer.reduce(StepTotals(["all"], torch.device("cpu")).vector)
            self.optimizer.publishing.start()
            self.optimizer.settle()
        held = self._lasting(held_bytes(self.model, self.optimizer))
        return Counted(held, self._by_axis(traffic), {}, {}, self._operations)

    def _lasting(self, held: Mapping[str, int]) -> dict[str, float]:
        """Bytes of what is there between steps too."""
        return {
            "parameters": held["parameters"] + held["buffers"],
            "gradients": held["gradients"],
            "master": held["master values"],
            "moments": held["moments"],
            "rooms": self.optimizer.publishing.nbytes if isinstance(self.optimizer, Zero1AdamW) else 0,
        }

    @property
    def _operations(self) -> float:
        return self.optimizer.matrices.operations if isinstance(self.optimizer, Zero1AdamW) else 0.0

    def _blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks.values() if isinstance(self.model, Decoder) else ()

    def _by_axis(self, traffic: Traffic) -> dict[tuple[str, str], int]:
        """What was sent, a part of an axis put down to the axis."""
        names = {
            str(axis.group.group_name): _PARTS.get(axis.name, axis.name) for axis in self._mesh.axes if axis.size > 1
        }
        sent: Counter[tuple[str, str]] = Counter()
        for (what, group), size in traffic.by_group.items():
            if size:
                sent[what, names[group]] += size
        return dict(sent)

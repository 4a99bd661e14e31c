"""The mesh of ranks: who works with whom, one axis for each way of sharing the work.

Rank order is InternEvo's: tensor ranks are neighbours, then data, and pipeline stages are the slowest. Inside the data
ranks a ZeRO group is a run of neighbours (the ranks of one machine, where they fit), and the ranks with the same number
in every ZeRO group are replicas of each other. With ranks counted through [pipeline, replica, zero, tensor] every axis
is one of these directions, or two flattened.

With isp the same ranks are counted a second time, through [pipeline, replica, zero, weight]: the linear layers of the
blocks are cut over runs of neighbours of another length than the sequence. With a mixture of experts, through
[pipeline, expert replica, expert zero, expert, tensor]: experts are dealt out over runs of neighbours among the data
ranks.

Nobody else makes process groups of these ranks: whoever talks to some of them is given an axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from evo_core.parallel.degrees import AxisName, Degrees, Line


@dataclass(frozen=True)
class Axis:
    """The ranks that differ from this one in one direction of the mesh.

    Attributes:
        name: of the direction.
        rank: this rank's number along it.
        size: how many they are.
        group: their process group, in the order of their numbers.
        ranks: they, by their numbers in the world.
        alike: the ranks of the world that have the same number along it as this one.
    """

    name: str
    rank: int
    size: int
    group: dist.ProcessGroup
    ranks: tuple[int, ...]
    alike: tuple[int, ...]


@dataclass(frozen=True)
class WeightAxes:
    """The axes, through the ranks of one stage, of weights that lie in another way than the rest: those that isp
    gathers, or experts.

    Attributes:
        cut: ranks that share each weight (of experts: all of them), and may see different tokens.
        data: ranks that hold the same part of it; `replica` times `zero`.
        replica: ranks that hold the same share of its optimizer's state.
        zero: ranks that share one copy of that state.
    """

    cut: Axis
    data: Axis
    replica: Axis
    zero: Axis


@dataclass(frozen=True)
class Mesh:
    """The axes of this rank.

    Attributes:
        world: all ranks.
        pipeline: one rank of each stage.
        data: ranks with the same part of the model that see different batches; `replica` times `zero`.
        replica: ranks that hold the same share of the optimizer's state.
        zero: ranks that share one copy of the optimizer's state.
        tensor: ranks that share each layer; with isp, the sequence.
        weights: with isp, the axes of what is gathered; else None.
        experts: where data ranks share the experts of a mixture, their axes; else None.
        ends: the rank of the first stage and the one of the last that have the same place in them, of which this is
            one; None where it is neither, or both.
        devices: the same [pipeline, replica, zero, tensor], for what of torch's takes a mesh of its own kind.
        timeout: for which one collective along an axis may take; None is torch's, by the backend.
        shards: whether the ranks of `zero` share the parameters too (fsdp).
    """

    world: Axis
    pipeline: Axis
    data: Axis
    replica: Axis
    zero: Axis
    tensor: Axis
    weights: WeightAxes | None
    ends: Axis | None
    devices: DeviceMesh
    timeout: timedelta | None = None
    experts: WeightAxes | None = None
    shards: bool = False
    _runs: dict[int, Axis] = field(default_factory=dict, repr=False)

    def tensor_run(self, size: int) -> Axis:
        """The run of `size` neighbours among the tensor ranks in which this one is, as of those that hold the same
        key and value heads; every rank of the run must call it alike.

        Args:
            size: divides the number of tensor ranks; above 1.
        """
        if size == self.tensor.size:
            return self.tensor
        if size not in self._runs:
            # Another stage of a pipeline may have no use for it.
            group = _group_of(Line(size, 1).ranks(self.world.rank), self.timeout)
            self._runs[size] = _axis("tensor run", group, 1)
        return self._runs[size]

    @property
    def axes(self) -> Iterator[Axis]:
        """All that there are by now, wider ones first: of the same ranks several may have one group."""
        yield from (self.world, self.data, self.replica, self.zero, self.tensor)
        yield from (self.pipeline,) if self.ends is None else (self.ends, self.pipeline)
        for more in (self.weights, self.experts):
            if more is not None:
                yield from (more.data, more.replica, more.zero, more.cut)
        yield from self._runs.values()

    @property
    def copies_share_weights(self) -> bool:
        """Whether ranks that see different batches fetch weights from each other (isp, fsdp), or send tokens to each
        other's experts, so that each waits for the others in every pass."""
        fetches = self.weights is not None and self.tensor.size % self.weights.cut.size != 0
        return fetches or self.shards or self.experts is not None

    @property
    def is_log_rank(self) -> bool:
        """Whether this rank prints, writes metrics and reads the stop file: the first of the world, at every layout."""
        return self.world.rank == 0


def make_mesh(degrees: Degrees, *, device_type: str = "cpu", timeout: timedelta | None = None) -> Mesh:
    """Make the process groups of the ranks of the default group; every rank must call it.

    Args:
        degrees: they multiply to the world size.
        device_type: "cpu" or "cuda".
        timeout: for which one collective may take; None is torch's, by the backend.
    """
    sizes = (degrees.pipeline, degrees.replicas, degrees.zero, degrees.tensor)
    devices = init_device_mesh(device_type, sizes, mesh_dim_names=("pipeline", "replica", "zero", "tensor"))

    def axis(name: AxisName, group: dist.ProcessGroup) -> Axis:
        return _axis(name, group, degrees.line(name).stride)

    pipeline = axis("pipeline", devices.get_group("pipeline"))
    data = axis("data", devices["replica", "zero"]._flatten("data").get_group())
    if timeout is not None:
        for group in {data.group, *devices.get_all_groups()}:
            distributed_c10d._set_pg_timeout(timeout, group)
    return Mesh(
        world=axis("world", _default_group()),
        pipeline=pipeline,
        data=data,
        replica=axis("replica", devices.get_group("replica")),
        zero=axis("zero", devices.get_group("zero")),
        tensor=axis("tensor", devices.get_group("tensor")),
        weights=_axes_of("weight", degrees, timeout) if degrees.gathers_weights else None,
        ends=_ends(degrees, pipeline, timeout),
        devices=devices,
        timeout=timeout,
        experts=_axes_of("expert", degrees, timeout) if degrees.expert > 1 else None,
        shards=degrees.shards,
    )


def _axes_of(what: Literal["weight", "expert"], degrees: Degrees, timeout: timedelta | None) -> WeightAxes:
    """Groups of their own, where others are of the same ranks too: messages of one group wait for each other, and
    weights are to be under way while the sequence is exchanged, gradients while tokens are. (torch's own mesh has the
    default group for every axis of all ranks.)"""

    def axis(name: AxisName) -> Axis:
        line = degrees.line(name)
        return _axis(name, _group_of(line.ranks(dist.get_rank()), timeout), line.stride)

    if what == "weight":
        return WeightAxes(axis("weight"), axis("weight_data"), axis("weight_replica"), axis("weight_zero"))
    return WeightAxes(axis("expert"), axis("expert_data"), axis("expert_replica"), axis("expert_zero"))


def _axis(name: str, group: dist.ProcessGroup, stride: int) -> Axis:
    """The axis through this rank along which neighbours are `stride` ranks of the world apart."""
    rank, line = dist.get_rank(), Line(group.size(), stride)
    return Axis(name, line.number(rank), line.size, group, line.ranks(rank), line.alike(rank, dist.get_world_size()))


def _ends(degrees: Degrees, pipeline: Axis, timeout: timedelta | None) -> Axis | None:
    """The axis from the first stage to the last through this rank."""
    if pipeline.size == 1:
        return None
    if pipeline.rank not in (0, pipeline.size - 1):
        # torch names a group that its ranks alone make by how many groups there are: all ranks must have as many, or
        # those of a mesh that is made after this one would look for each other under several names.
        _group_of((dist.get_rank(),), timeout)
        return None
    pair, stage = (pipeline.ranks[0], pipeline.ranks[-1]), range(degrees.data * degrees.tensor)
    # Over all ranks it would be one group after another, for every place in a stage.
    group = pipeline.group if pipeline.size == 2 else _group_of(pair, timeout)
    first = dist.get_rank() // len(stage) * len(stage)
    return Axis("ends", pair.index(dist.get_rank()), 2, group, pair, tuple(first + place for place in stage))


def _group_of(ranks: tuple[int, ...], timeout: timedelta | None) -> dist.ProcessGroup:
    """The group of some ranks, this one among them, which they alone make: no other rank calls it."""
    group = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)  # this rank is in it
    return group


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None  # init_device_mesh has used it
    return group

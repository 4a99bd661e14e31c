"""How many ranks each kind of parallelism takes: arithmetic on the ``parallel`` block and the number of ranks.

    world = pipeline x data x tensor                data = replicas x zero1
    world = pipeline x weight_data x weight         with tensor.mode isp: weight_data = weight_replicas x zero1
    data  = expert_data x expert                    of a mixture of experts

Ranks are counted in InternEvo's order: tensor ranks are neighbours, then come the data ranks, and pipeline stages are
the slowest. So the ranks of every group are a fixed number apart, and any rank's group is known without asking it.

There is no torch here: a configuration is checked by it before any work starts, and the mesh is made out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.parallel import ParallelConfig


AxisName = Literal[
    "world",
    "pipeline",
    "data",
    "replica",
    "zero",
    "tensor",
    "weight",
    "weight_data",
    "weight_replica",
    "weight_zero",
    "expert",
    "expert_data",
    "expert_replica",
    "expert_zero",
]


class Line(NamedTuple):
    """Groups of `size` ranks that are `stride` apart; together they are all ranks of the world.

    With stride 2 and size 2: 0 and 2, 1 and 3, 4 and 6, 5 and 7, ...
    """

    size: int
    stride: int

    def number(self, rank: int) -> int:
        """Of a rank in its group."""
        return rank // self.stride % self.size

    def ranks(self, rank: int) -> tuple[int, ...]:
        """The group of a rank, by their numbers in it."""
        first = rank - self.number(rank) * self.stride
        return tuple(range(first, first + self.size * self.stride, self.stride))

    def alike(self, rank: int, world: int) -> tuple[int, ...]:
        """The ranks of a world that have the same number in their groups as this one, ascending."""
        return tuple(other for other in range(world) if self.number(other) == self.number(rank))


@dataclass(frozen=True)
class Degrees:
    """The number of ranks along each direction; whoever makes one has checked that they multiply to the world.

    Attributes:
        pipeline: stages that the layers are dealt out over.
        tensor: ranks that share each layer; with isp, the sequence.
        data: ranks that see different batches.
        weight: with isp, ranks that share each weight; 1 in the other modes.
        weight_data: ranks that hold the same part of the weights and see different tokens; `data` but with isp.
        zero1: ranks that share one copy of the optimizer's state of them; divides `weight_data`.
        expert: data-parallel ranks that the experts of a mixture are dealt out over; divides `data`.
        shards: whether the ranks of a ZeRO group share parameters and gradients too (fsdp).
    """

    pipeline: int
    tensor: int
    data: int
    weight: int
    weight_data: int
    zero1: int
    expert: int = 1
    shards: bool = False

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int, experts: int = 1) -> Degrees:
        """The degrees of a ``parallel`` block on ``world_size`` ranks; a zero1.size of 0 or less takes all it can.

        Args:
            experts: of each layer of the model.

        Raises:
            ConfigError: they do not fit; the first rule that is broken, with the nearest legal choice.
        """
        for error in degree_errors(parallel, world_size, experts=experts):
            raise error
        pipeline, tensor, weight = parallel.pipeline.size, parallel.tensor.size, _weight(parallel)
        data = world_size // (pipeline * tensor)
        weight_data = _weight_data(parallel, world_size)
        zero1 = parallel.zero1.size
        zero1 = zero1 if zero1 > 0 else weight_data
        expert = _expert(parallel, data, experts)
        return cls(pipeline, tensor, data, weight, weight_data, zero1, expert, parallel.zero1.fsdp and zero1 > 1)

    @classmethod
    def of_inference(
        cls, tensor: int, pipeline: int, world_size: int, keys: tuple[str, str] = ("tensor", "pipeline")
    ) -> Degrees:
        """The degrees of ranks that only read a model: ``tensor`` x ``pipeline`` of them hold it together, and what is
        left of the ranks is data parallel.

        Args:
            tensor: ranks that share each layer.
            pipeline: stages that the layers are dealt out over.
            keys: where the two sizes were stated, for messages.

        Raises:
            ConfigError: the ranks do not divide by them.
        """
        for size, key in zip((tensor, pipeline), keys, strict=True):
            if size < 1:
                raise ConfigError(f"{size} must be 1 or more", key=key)
        if world_size % (tensor * pipeline):
            raise _indivisible_inference(world_size, tensor, pipeline, keys)
        data = world_size // (tensor * pipeline)
        return cls(pipeline=pipeline, tensor=tensor, data=data, weight=1, weight_data=data, zero1=1)

    @property
    def world(self) -> int:
        """All ranks."""
        return self.pipeline * self.data * self.tensor

    @property
    def gathers_weights(self) -> bool:
        """Whether blocks are shared as isp does: weights over ranks of their own."""
        return self.weight > 1 or self.weight_data != self.data

    @property
    def zero(self) -> int:
        """Ranks that share one copy of the optimizer's state of what all `data` ranks hold alike.

        With isp that is all but the linear layers of the blocks; of these it is `zero1`. All ranks there are share it,
        or as many as come nearest to what was asked for.
        """
        return self.data if self.zero1 == self.weight_data else math.gcd(self.zero1, self.data)

    @property
    def expert_zero(self) -> int:
        """Ranks that share one copy of the optimizer's state of an expert, of those that hold it: those of them that
        are in one ZeRO group, where that has whole expert groups."""
        holders = self.data // self.expert
        return holders if self.zero == self.data else math.gcd(holders, max(self.zero // self.expert, 1))

    @property
    def replicas(self) -> int:
        """Copies of that state."""
        return self.data // self.zero

    def line(self, axis: AxisName) -> Line:
        """How the ranks of an axis lie in the world.

        ``zero`` and ``replica`` are parts of ``data``: a run of neighbours in it, and those with the same number in
        every run; ``weight_zero`` and ``weight_replica`` are those of ``weight_data``. In every mode but isp
        ``weight_data`` and ``data`` are one. ``expert`` is a run of neighbours in ``data`` too, and ``expert_data``
        those that hold the same experts, of which ``expert_zero`` and ``expert_replica`` are parts.
        """
        stage = self.data * self.tensor
        held_alike = stage // self.weight_data  # how far apart the next rank is that holds the same part of the weights
        same_expert = self.tensor * self.expert
        lines: dict[AxisName, Line] = {
            "world": Line(self.world, 1),
            "pipeline": Line(self.pipeline, stage),
            "data": Line(self.data, self.tensor),
            "replica": Line(self.replicas, self.tensor * self.zero),
            "zero": Line(self.zero, self.tensor),
            "tensor": Line(self.tensor, 1),
            "weight": Line(self.weight, 1),
            "weight_data": Line(self.weight_data, held_alike),
            "weight_replica": Line(self.weight_data // self.zero1, held_alike * self.zero1),
            "weight_zero": Line(self.zero1, held_alike),
            "expert": Line(self.expert, self.tensor),
            "expert_data": Line(self.data // self.expert, same_expert),
            "expert_replica": Line(self.data // self.expert // self.expert_zero, same_expert * self.expert_zero),
            "expert_zero": Line(self.expert_zero, same_expert),
        }
        return lines[axis]

    def ranks_of(self, axis: AxisName, rank: int) -> tuple[int, ...]:
        """The ranks of the world in the group of a rank along an axis, by their numbers in it.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} of {self.world}")
        return self.line(axis).ranks(rank)


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Ranks that see different batches = ranks / pipeline size / tensor size.

    Raises:
        ConfigError: that is no whole number.
    """
    for error in degree_errors(parallel, world_size):
        if error.key != "parallel.zero1.size":  # decides who holds what, not how many see data
            raise error
    return world_size // (parallel.pipeline.size * parallel.tensor.size)


def degree_errors(
    parallel: ParallelConfig, world_size: int, *, most_stages: int | None = None, experts: int | None = None
) -> Iterator[ConfigError]:
    """What does not fit in a layout of ``world_size`` ranks, each rule with the nearest legal choice.

    Args:
        most_stages: that the model has layers for, where that is known: no more are proposed.
        experts: of each layer of the model, where that is known.
    """
    pipeline, tensor, weight = parallel.pipeline.size, parallel.tensor.size, parallel.weight.size
    for name, size, beside in (("tensor", tensor, weight), ("weight", weight, tensor)):
        if world_size % (pipeline * size):
            yield _indivisible(world_size, pipeline, name, size, beside, most_stages or world_size)
            return
    ranks, zero1 = _weight_data(parallel, world_size), parallel.zero1.size
    if zero1 > 0 and ranks % zero1:
        whose = "ranks that hold the same part of the weights" if _isp(parallel) else "data-parallel ranks"
        divided = f"weight {weight}" if _isp(parallel) else f"tensor {tensor}"
        yield ConfigError(
            f"{zero1} does not divide the {ranks} {whose} ({world_size} ranks / pipeline {pipeline} / {divided})",
            key="parallel.zero1.size",
            hint=f"nearest: {nearest(zero1, divisors(ranks))}; -1 takes all",
        )
    if experts is not None:
        yield from _expert_errors(parallel, world_size // (pipeline * tensor), experts)


def _expert_errors(parallel: ParallelConfig, data: int, experts: int) -> Iterator[ConfigError]:
    size = parallel.expert.size
    if size <= 1 or experts == 1 or _isp(parallel):  # no experts to deal out, or refused whatever the ranks
        return
    legal = divisors(math.gcd(data, experts))
    for number, what in ((experts, "experts (model.num_experts)"), (data, "data-parallel ranks")):
        if number % size:
            hint = f"nearest: {nearest(size, legal)}; -1 takes all that divide"
            yield ConfigError(f"{size} does not divide the {number} {what}", key="parallel.expert.size", hint=hint)
            return


def _indivisible(world_size: int, pipeline: int, name: str, size: int, beside: int, most_stages: int) -> ConfigError:
    """The ranks do not divide into stages and the ranks that share a layer (``tensor``) or a weight (``weight``).

    Args:
        beside: of the two the other size; what is proposed goes with it.
    """
    misfit = _Misfit.of(world_size, pipeline, size, most_stages, beside)
    multiple = pipeline * math.lcm(size, beside)
    ranks = nearest(world_size, [n * multiple for n in range(1, world_size // multiple + 2)])
    choices = misfit.choices("pipeline.size", f"{name}.size")
    return ConfigError(
        f"{_ranks_do(world_size)} not divide into pipeline.size {pipeline} x {name}.size {size}",
        key="parallel.pipeline.size" if misfit.is_stages else f"parallel.{name}.size",
        hint="nearest: " + ", or ".join([*choices, f"{ranks} ranks"]),
    )


def _indivisible_inference(world_size: int, tensor: int, pipeline: int, keys: tuple[str, str]) -> ConfigError:
    """The same of ranks that only read a model, more of which can be started."""
    misfit = _Misfit.of(world_size, pipeline, tensor, world_size)
    both = min(tensor, pipeline) > 1
    choices = misfit.choices("pipeline", "tensor") if both else misfit.choices("", "")
    multiple = tensor * pipeline
    return ConfigError(
        f"{_ranks_do(world_size)} not divide "
        + (f"into pipeline {pipeline} x tensor {tensor}" if both else f"by {multiple}"),
        key=keys[misfit.is_stages],
        hint="nearest: " + ", or ".join([*choices, f"start {-(-world_size // multiple) * multiple} ranks"]),
    )


def _ranks_do(world_size: int) -> str:
    return f"{world_size} ranks do" if world_size > 1 else "1 rank does"


class _Misfit(NamedTuple):
    """Ranks that do not divide into so many stages times so many ranks that share a layer.

    Attributes:
        stages: as asked for.
        sharing: as asked for.
        legal_stages: numbers of stages that fit beside `sharing`.
        legal_sharing: numbers of ranks that fit beside `stages`.
        pairs: of both, where one of them has to change beside the other.
    """

    stages: int
    sharing: int
    legal_stages: list[int]
    legal_sharing: list[int]
    pairs: list[tuple[int, int]]

    @classmethod
    def of(cls, world_size: int, stages: int, sharing: int, most_stages: int, beside: int = 1) -> _Misfit:
        """With what fits instead.

        Args:
            beside: of another kind of sharing, into which each stage divides too.
        """

        def fitting(sharing: int) -> list[int]:
            common = math.lcm(sharing, beside)
            return [s for s in divisors(world_size // common) if s <= most_stages] if world_size % common == 0 else []

        legal_stages = fitting(sharing)
        legal_sharing = divisors(world_size // stages) if world_size % stages == 0 else []
        is_either = legal_stages or legal_sharing
        pairs = [] if is_either else [(s, t) for t in divisors(world_size) for s in fitting(t)]
        return cls(stages, sharing, legal_stages, legal_sharing, pairs)

    @property
    def is_stages(self) -> bool:
        """Whether the number of stages is what to change first."""
        return self.sharing == 1 or bool(self.legal_stages and not self.legal_sharing)

    def choices(self, stages: str, sharing: str) -> list[str]:
        """What to ask for instead, under these names of the two."""
        found = []
        if self.legal_sharing:
            found.append(f"{sharing} {nearest(self.sharing, self.legal_sharing)}".lstrip())
        if self.legal_stages:
            found.append(f"{stages} {nearest(self.stages, self.legal_stages)}".lstrip())
        if self.pairs:
            s, t = min(self.pairs, key=lambda pair: (abs(pair[0] - self.stages) + abs(pair[1] - self.sharing), pair))
            found.append(f"{stages} {s} with {sharing} {t}")
        return found


def _isp(parallel: ParallelConfig) -> bool:
    return parallel.tensor.mode == "isp"


def _expert(parallel: ParallelConfig, data: int, experts: int) -> int:
    """Ranks that experts are dealt out over; with isp every rank fetches all of them."""
    if _isp(parallel) or experts == 1:
        return 1
    return parallel.expert.size if parallel.expert.size > 0 else math.gcd(data, experts)


def _weight(parallel: ParallelConfig) -> int:
    return parallel.weight.size if _isp(parallel) else 1


def _weight_data(parallel: ParallelConfig, world_size: int) -> int:
    """Ranks that hold the same part of the weights: isp cuts weights over its own axis, the rest over tensor's."""
    cut = parallel.weight.size if _isp(parallel) else parallel.tensor.size
    return world_size // (parallel.pipeline.size * cut)

"""What a rank holds and sends, by arithmetic alone: microseconds for each layout, to know which are worth running.

It is near to what `rank_cost` finds by running the code, and decides only in which order layouts are run; nothing of it
is printed. What it leaves out is small or the same for all: rows that do not divide, what norms keep, sums of the loss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from evo_core.config import ModelConfig, TrainConfig
from evo_core.estimate.matrices import Shapes, expert_weights, linear_weights
from evo_core.estimate.schedule import schedule_of
from evo_core.model.families import FAMILIES
from evo_core.model.stage import Stage
from evo_core.optim.muon import operations
from evo_core.optim.slots import evenly
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.pipeline.placing import Placing, placing_of

_LOGITS = 2**27
"""Elements of logits at once on a GPU (evo_core/model/ops/loss.py)."""

_BYTES = {"bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Sketch:
    """Of the rank that needs most.

    Attributes:
        parameters: bytes.
        gradients: bytes.
        states: bytes of master values and moments.
        memory: bytes of all that, with buffers and activations.
        sent: bytes a step by collective and axis.
        operations: of the products of Muon's update.
    """

    parameters: int
    gradients: int
    states: int
    memory: int
    sent: dict[tuple[str, str], int]
    operations: float = 0.0

    @property
    def lasting(self) -> int:
        """Bytes that are there in every moment of training."""
        return self.parameters + self.gradients + self.states


class _Share(NamedTuple):
    """Parameters whose states are cut over ranks.

    Attributes:
        elements: that the rank holds.
        axes: what the names of their axes begin with.
        holders: ranks that hold them.
        zero: of these, ranks that share one copy of the states.
        moments: tensors of them beside the master values.
        owned: elements of the states of the rank that has most.
        uneven: elements that are reduced to their owners and broadcast from there, one after another.
        together: elements of matrices that are gathered at once, at most.
    """

    elements: float
    axes: str
    holders: int
    zero: int
    moments: int
    owned: float
    uneven: float = 0.0
    together: float = 0.0


def _by_rows(elements: float, axes: str, holders: int, zero: int) -> _Share:
    return _Share(elements, axes, holders, zero, 2, elements / zero)


def _as_whole(shapes: Shapes, blocks: int, axes: str, holders: int, zero: int) -> _Share:
    """Of Muon's matrices."""
    sizes = tuple((rows * columns, count * blocks) for (rows, columns), count in sorted(shapes.items()))
    elements = sum(numel * count for numel, count in sizes)
    shared = evenly(sizes, zero)
    together = max(shared.even, max(numel for numel, _ in sizes))
    return _Share(elements, axes, holders, zero, 1, shared.most, shared.uneven, together)


@cache
def _split(layers: int, placing: Placing) -> tuple[Stage, ...]:
    return placing.cut(layers)


def sketch(cfg: TrainConfig, degrees: Degrees) -> Sketch:
    """Of a legal layout."""
    placing, schedule = placing_of(cfg), schedule_of(cfg, degrees)
    stages = _split(cfg.model.num_layers, placing)
    ranks = sorted({0, degrees.pipeline // 2, degrees.pipeline - 1})
    found = [_Rank(cfg, degrees, [stages[s] for s in placing.stages_of(r)], schedule.alive[r]) for r in ranks]
    most = max(found, key=lambda rank: rank.memory)
    sent: Counter[tuple[str, str]] = Counter()
    for rank in found:
        sent |= rank.sent()
    return Sketch(*most.lasting, most.memory, dict(+sent), max(rank.operations() for rank in found))


class _Rank:
    """One rank of a pipeline.

    Args:
        stages: that it has.
        alive: micro-batches that it keeps, in whole ones of all its stages.
    """

    def __init__(self, cfg: TrainConfig, degrees: Degrees, stages: list[Stage], alive: float) -> None:
        self.cfg, self.model, self.degrees, self.alive = cfg, cfg.model, degrees, alive
        self.bytes = _BYTES.get(self.model.dtype_name, 4)
        self.wide = max(self.bytes, 4)
        self.isp = cfg.parallel.tensor.mode == "isp"
        self.muon = cfg.optimizer.name == "muon"
        self.fused = self.muon and FAMILIES[cfg.model_type].qkv != "split"
        self.rows = self.isp or cfg.parallel.tensor.mode in ("msp", "fsp")
        self.blocks = sum(len(stage.blocks) for stage in stages)
        self.again = sum(len(stage.recomputed(float(self.model.checkpoint))) for stage in stages)
        self.has_head = any(stage.has_head for stage in stages)
        self.ends = sum(stage.has_embedding + stage.has_head for stage in stages)
        self.tokens = cfg.data.packed_length
        self.count = cfg.micro_num(degrees.data)
        linear, experts, whole = block_elements(self.model)
        cut = degrees.weight if self.isp else degrees.tensor
        self.block = (linear + experts / degrees.expert) / cut
        self.whole_block = linear + experts + whole
        self.fetched = self.block * cut * self.blocks if self.isp else 0.0
        self.linear_held = linear / cut * self.blocks
        self.experts_held = experts / degrees.expert / cut * self.blocks
        self.rest_held = (
            whole * self.blocks + self.ends * self.model.hidden_size * self.model.vocab_size / degrees.tensor
        )
        self.lasting = self._lasting()
        self.memory = int(sum(self.lasting) + self._buffers() + self._activations())

    @cached_property
    def shares(self) -> tuple[_Share, ...]:
        """What is held of the blocks' linear layers, of experts and of the rest."""
        degrees = self.degrees
        of_data = "", degrees.data, degrees.zero
        of_linear = ("weight_", degrees.weight_data, degrees.zero1) if self.isp else of_data
        dealt = degrees.expert > 1
        of_experts = ("expert_", degrees.data // degrees.expert, degrees.expert_zero) if dealt else of_linear
        rest = _by_rows(self.rest_held, *of_data)
        if self.muon:
            kinds = zip((of_linear, of_experts), self._matrices(fused=self.fused), strict=True)
            return (*(_as_whole(shapes, self.blocks, *axes) for axes, shapes in kinds if shapes), rest)
        return _by_rows(self.linear_held, *of_linear), _by_rows(self.experts_held, *of_experts), rest

    def _matrices(self, *, fused: bool) -> tuple[Shapes, Shapes]:
        """Of a block and of its experts."""
        return linear_weights(self.model, fused=fused), expert_weights(self.model, self.degrees.expert)

    def _lasting(self) -> tuple[int, int, int]:
        """Bytes of parameters, gradients, states."""
        parameters = gradients = states = 0.0
        for share in self.shares:
            if self.degrees.shards:  # a share of the parameters is their master values
                parameters += share.owned * self.wide
                gradients += share.owned * self.wide
                states += share.owned * 2 * self.wide
                continue
            is_own_master = share.zero == 1 and self.bytes == self.wide
            parameters += share.elements * self.bytes
            gradients += (share.elements + (share.owned if share.zero > 1 else 0)) * self.wide
            states += share.owned * (share.moments if is_own_master else share.moments + 1) * self.wide
        return int(parameters), int(gradients), int(states)

    def operations(self) -> float:
        """Of the products of Muon's update."""
        steps = self.cfg.optimizer.ns_steps
        if not self.muon or steps is None:
            return 0.0
        kinds = [shapes for shapes in self._matrices(fused=False) if shapes]
        of_kinds = [sum(count * operations(*shape, steps) for shape, count in shapes.items()) for shapes in kinds]
        shares = zip(of_kinds, self.shares[:-1], strict=True)
        return self.blocks * sum(of_all * share.owned / share.elements for of_all, share in shares)

    def _buffers(self) -> float:
        if self.degrees.shards:
            ends = self.ends * self.model.hidden_size * self.model.vocab_size / self.degrees.tensor
            return 2 * self.block * (self.bytes + self.wide) + ends * self.bytes
        shares = self.shares
        zero = max(share.zero for share in shares)
        together = max(
            sum(share.elements for share in shares if not share.together), *(share.together for share in shares)
        )
        gathered = min(together, self.cfg.hybrid_zero_optimizer.all_gather_size) * self.bytes * (1 + 1 / zero)
        fetched = 2 * self.whole_block * self.bytes + self.whole_block * self.wide if self.degrees.weight > 1 else 0.0
        return (gathered if zero > 1 else 0.0) + fetched

    def _activations(self) -> float:
        model, tensor, tokens = self.model, self.degrees.tensor, self.tokens
        own = tokens / tensor if self.rows else tokens
        gathered = own if self.isp or self.cfg.parallel.tensor.mode == "fsp" else tokens
        heads, kv_heads = model.num_attention_heads * model.head_dim, model.num_kv_attention_heads * model.head_dim
        inner = (
            (4 if model.use_swiglu else 2) * model.mlp_hidden_size * (model.moe.top_k if model.num_experts > 1 else 1)
        )
        inside = (2 * heads + 2 * kv_heads + inner) * tokens / tensor
        block = (inside + model.hidden_size * (4 * own + 2 * gathered)) * self.bytes
        stream = model.hidden_size * own * self.bytes
        kept = ((self.blocks - self.again) * block + self.again * stream) * self.alive
        once = block if self.again else 0.0
        if self.has_head:
            logits = min(_LOGITS, tokens * model.vocab_size / tensor) * (2 * self.wide)
            once = max(once, logits + model.hidden_size * model.vocab_size / tensor * self.wide)
        return kept + once

    def sent(self) -> Counter[tuple[str, str]]:
        """Bytes a step."""
        sent: Counter[tuple[str, str]] = Counter()
        self._states(sent)
        if self.degrees.tensor > 1 and not self.isp:
            self._between_tensor_ranks(sent)
        if self.isp:
            self._weights(sent)
        degrees, model = self.degrees, self.model
        stream = self.tokens * model.hidden_size * self.bytes / (degrees.tensor if self.rows else 1)
        if degrees.pipeline > 1:
            sent["send", "pipeline"] = int(2 * model.num_chunks * self.count * stream)
        if model.num_experts > 1 and degrees.expert > 1:
            routed = self.tokens * model.moe.top_k * model.moe.capacity_factor * model.hidden_size * self.bytes
            sent["all_to_all", "expert"] = int(
                4 * self.blocks * self.count * routed * (degrees.expert - 1) / degrees.expert
            )
        return sent

    def _states(self, sent: Counter[tuple[str, str]]) -> None:
        """Gradients and updated parameters."""
        times, fetches = (self.count, 2 * self.count) if self.degrees.shards else (1, 1)
        for share in self.shares:
            axis, others = f"{share.axes}zero", (share.zero - 1) / share.zero
            replicas = share.holders // share.zero
            even = share.elements - share.uneven
            sent["reduce_scatter", axis] += int(times * even * self.wide * others)
            sent["all_reduce", f"{share.axes}replica"] += int(
                times * 2 * share.owned * self.wide * (replicas - 1) / replicas
            )
            sent["all_gather", axis] += int(fetches * even * self.bytes * others)
            sent["reduce", axis] += int(share.uneven * self.wide * others)
            sent["broadcast", axis] += int(share.uneven * self.bytes * others)

    def _between_tensor_ranks(self, sent: Counter[tuple[str, str]]) -> None:
        tensor, mode = self.degrees.tensor, self.cfg.parallel.tensor.mode
        whole = self.tokens * self.model.hidden_size * self.bytes * (tensor - 1) / tensor * self.count
        passes = (10 if mode == "fsp" else 8) * self.blocks + (2 if mode == "mtp" else 3) * self.again + 2 * self.ends
        sent["all_reduce" if mode == "mtp" else "all_gather", "tensor"] += int(passes * whole)

    def _weights(self, sent: Counter[tuple[str, str]]) -> None:
        degrees, model = self.degrees, self.model
        weight, tensor = degrees.weight, degrees.tensor
        share = self.fetched * (weight - 1) / weight * self.count
        sent["all_gather", "weight"] += int(2 * share * self.bytes)
        sent["reduce_scatter", "weight"] += int(share * self.wide)
        rows = self.tokens / tensor * (2 * model.num_attention_heads + 2 * max(model.num_kv_attention_heads, tensor))
        exchanged = rows * model.head_dim * self.bytes * (tensor - 1) / tensor
        sent["all_to_all", "tensor"] += int((2 * self.blocks + self.again) * exchanged * self.count)


@cache
def _elements(hidden: int, heads: int, kv_heads: int, mlp: int, experts: int, residual: bool) -> tuple[int, int, int]:
    linear = hidden * (2 * heads + 2 * kv_heads)
    if experts == 1:
        return linear + mlp, 0, 2 * hidden
    return linear + (mlp if residual else 0), experts * mlp, 2 * hidden + hidden * experts


def block_elements(model: ModelConfig) -> tuple[int, int, int]:
    """Of a block: linear layers, experts, and what every rank that shares it has whole."""
    width = model.head_dim
    mlp = (3 if model.use_swiglu else 2) * model.hidden_size * model.mlp_hidden_size
    heads, kv_heads = model.num_attention_heads * width, model.num_kv_attention_heads * width
    return _elements(model.hidden_size, heads, kv_heads, mlp, model.num_experts, model.moe_use_residual)

"""The cost of a rank from runs of a few micro-batches, and of a few layers of each stage.

What a rank holds and sends grows by as much with each further micro-batch and with each further layer, so that runs of
two numbers of each say what all of them come to. With as many layers as there are that is exact but for activations of
interleaved stages; with a few, rows that do not divide over ranks are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evo_core.config import TrainConfig
from evo_core.estimate.costs import RankCost
from evo_core.estimate.rank_cost import rank_cost
from evo_core.estimate.schedule import schedule
from evo_core.parallel.pipeline.placing import placing_of

Cost = Callable[[TrainConfig, int, int], RankCost]
"""From a job, a number of ranks and one of them to what that one holds and sends."""

Counted = dict[str | tuple[str, str], float]
"""Bytes by part of memory and by (collective, axis)."""

_PARTS = ("parameters", "gathered", "gradients", "master", "moments", "buffers", "activations")


def few_micro_batches(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The cost of a rank with all its layers.

    Raises:
        ConfigError: the job cannot run on so many ranks.
    """
    return _cost(rank, _of_all(cfg, world_size, rank))


def few_layers(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The same from a few layers of each stage, where a half of the blocks is recomputed, none or all."""
    degrees, placing = cfg.degrees(world_size), placing_of(cfg)
    stages = [placing.cut(cfg.model.num_layers)[s] for s in placing.stages_of(rank // (degrees.data * degrees.tensor))]
    layers = sum(len(stage.blocks) for stage in stages) / placing.chunks
    few = 2 if float(cfg.model.checkpoint) not in (0.0, 1.0) else 1
    if layers <= 2 * few:
        return few_micro_batches(cfg, world_size, rank)
    less, more = (_of_all(_with_layers(cfg, placing.stages * n), world_size, rank) for n in (few, 2 * few))
    counted = _line(less, more, (layers - few) / few)
    counted["gathered"] = more["gathered"]  # of two blocks at most, however many there are
    counted["buffers"] = more["buffers"] and _room(cfg, counted["parameters"], more["buffers"])
    return _cost(rank, counted)


def _room(cfg: TrainConfig, parameters: float, of_few: float) -> float:
    """Bytes of messages' rooms: one takes all updated parameters, or as many as are gathered at once."""
    element = 2 if cfg.model.dtype_name in ("bfloat16", "float16") else 4
    room = min(cfg.hybrid_zero_optimizer.all_gather_size * element, parameters)
    return room + of_few if cfg.parallel.weight.memory_pool else max(room, of_few)


def _of_all(cfg: TrainConfig, world_size: int, rank: int) -> Counted:
    """Of all micro-batches, from one and two of them; of interleaved stages from one and two rounds."""
    degrees, placing = cfg.degrees(world_size), placing_of(cfg)
    count, mode = cfg.micro_num(degrees.data), cfg.parallel.pipeline.mode
    few = placing.ranks if placing.chunks > 1 and mode == "1F1B" else 1
    if count <= 2 * few:
        return _counted(rank_cost(cfg, world_size, rank))
    one, two = (_counted(rank_cost(_with_micro_batches(cfg, n), world_size, rank)) for n in (few, 2 * few))
    counted = _line(one, two, (count - few) / few)
    place = rank // (degrees.data * degrees.tensor)
    kept = [schedule(placing, mode, n).alive[place] for n in (few, 2 * few, count)]
    grown = (two["activations"] - one["activations"]) / (kept[1] - kept[0]) if kept[1] > kept[0] else 0.0
    counted |= {part: two[part] for part in _PARTS}
    counted["activations"] = two["activations"] + grown * (kept[2] - kept[1])
    return counted


def _with_layers(cfg: TrainConfig, layers: int) -> TrainConfig:
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"num_layers": layers})})


def _with_micro_batches(cfg: TrainConfig, count: int) -> TrainConfig:
    data = {"micro_num": count, "global_batch_tokens": None, "rampup_batch_size": ""}
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=data)})


def _line(one: Counted, two: Counted, steps: float) -> Counted:
    """Where a line through both is after so many steps from the first to the second."""
    return {key: one.get(key, 0) + steps * (two.get(key, 0) - one.get(key, 0)) for key in {**one, **two}}


def _counted(cost: RankCost) -> Counted:
    return {**{part: getattr(cost, part) for part in _PARTS}, **cost.sent}


def _cost(rank: int, counted: Counted) -> RankCost:
    sent = {key: round(size) for key, size in counted.items() if isinstance(key, tuple)}
    empty = RankCost(rank, 0, 0, 0, 0, 0, 0, 0, sent)
    return replace(empty, **{part: round(counted[part]) for part in _PARTS})

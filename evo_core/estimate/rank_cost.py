"""What one rank of a layout holds and sends, by running the training code of that rank without memory and without the
other ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from evo_core.data.loader.batch import Batch
from evo_core.estimate.costs import RankCost
from evo_core.estimate.further import Layers, at, few_layers, of_micro_batches
from evo_core.estimate.imagined import Imagined, imagined_ranks
from evo_core.estimate.step_cost import Counted, CountedStep
from evo_core.model.ops.cache_rows import as_on_a_gpu
from evo_core.model.ops.routing import capacity
from evo_core.optim.bucket import make_buckets
from evo_core.optim.publishing import Publishing
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.parallel.pipeline.placing import placing_of
from evo_core.train.optimizer import make_groups
from evo_core.train.run import make_model

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

__all__ = ["RankCost", "quick_cost", "rank_cost"]

_OF_TOKENS = ("input_ids", "labels", "positions", "type_ids")
"""What a batch has of each token, of which nothing is read but in the model."""


def rank_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The cost of a rank, from a step with all its layers and micro-batches.

    Raises:
        ConfigError: the job cannot run on so many ranks.
        RuntimeError: this process has a process group.
    """
    cfg.check_world(world_size)
    cfg = _interpreted(cfg)
    with imagined_ranks(world_size, rank):
        mesh = make_mesh(cfg.degrees(world_size))
        return _counted(cfg, mesh, cfg.micro_num(mesh.data.size)).cost(rank)


def quick_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The same from steps with one micro-batch, or as few as show all that happens, of a few layers of each stage.

    What a rank holds and sends grows by as much with each further layer and micro-batch; which of them are alive at a
    time the pipeline's own order says.

    Raises:
        ConfigError: the job cannot run on so many ranks.
        RuntimeError: this process has a process group.
    """
    cfg.check_world(world_size)
    cfg = _interpreted(cfg)
    placing = placing_of(cfg)
    with imagined_ranks(world_size, rank):
        mesh = make_mesh(cfg.degrees(world_size))
        count, ahead = cfg.micro_num(mesh.data.size), cfg.parallel.weight.overlap and mesh.weights is not None
        few = min(count, 2 if ahead else 1)  # weights are sent for ahead from the second one on
        every = placing.cut(cfg.model.num_layers)
        wanted = {
            stage: Layers.of(every[stage].blocks, float(cfg.model.checkpoint))
            for stage in placing.stages_of(mesh.pipeline.rank)
        }
        runs = few_layers(wanted.values(), fetches=mesh.weights is not None or mesh.shards)
        apart = _with_passes_apart(cfg)
        if runs is None:
            counted = _counted(apart, mesh, few)
        else:
            counted = at(
                wanted, {each: _counted(_with_layers(apart, placing.stages, each), mesh, few) for each in runs}
            )
            if cfg.optimizer.name == "muon":  # whole matrices are not shared layer by layer
                counted = counted.with_update(_update(cfg, mesh))
            elif counted.held["rooms"]:
                counted = counted.with_rooms(_rooms(cfg, mesh))
        return of_micro_batches(counted, cfg, mesh, few, count).cost(rank)


def _counted(cfg: TrainConfig, mesh: Mesh, micro_num: int) -> Counted:
    data = cfg.data
    batch = Batch.without_targets(micro_num, data.packed_length, data.seq_len)
    with as_on_a_gpu(), Imagined(_kept(cfg)) as mode:
        step = CountedStep(cfg, mesh, drawn=False)
        tokens: dict[str, Any] = {name: mode.from_tensor(getattr(batch, name)) for name in _OF_TOKENS}
        return step.counted(replace(batch, **tokens), data.seq_len)


def _with_passes_apart(cfg: TrainConfig) -> TrainConfig:
    """Without what sends in a pass what is not of that pass, but of the step."""
    zero = cfg.hybrid_zero_optimizer.model_copy(update={"overlap_sync_grad": False, "overlap_sync_param": False})
    return cfg.model_copy(update={"hybrid_zero_optimizer": zero})


def _with_layers(cfg: TrainConfig, stages: int, layers: Layers) -> TrainConfig:
    """With so many in each of so many stages."""
    share = 1.0 if layers.again == layers.all else (layers.again + 0.5) / layers.all if layers.again else 0.0
    model = cfg.model.model_copy(update={"num_layers": stages * layers.all, "checkpoint": share})
    return cfg.model_copy(update={"model": model})


def _rooms(cfg: TrainConfig, mesh: Mesh) -> int:
    """Bytes of the buffers for updated parameters: of the longest message, which grows with the layers to a limit."""
    model, zero = make_model(cfg, mesh, torch.device("meta"), drawn=False), cfg.hybrid_zero_optimizer
    groups = make_groups(cfg, model, mesh)
    buckets = [bucket for group in groups for bucket in make_buckets(group, zero.reduce_bucket_size, torch.float32)]
    return Publishing(buckets, {}, zero.all_gather_size).needed


def _update(cfg: TrainConfig, mesh: Mesh) -> Counted:
    """What the optimizer of all layers holds and sends."""
    with Imagined():
        return CountedStep(cfg, mesh, drawn=False).update()


def _interpreted(cfg: TrainConfig) -> TrainConfig:
    """The job without compiled blocks, which cannot be imagined."""
    if not getattr(cfg.model, "compile", False):
        return cfg
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"compile": False})})


def _kept(cfg: TrainConfig) -> float:
    """The share of choices of experts for which there is room, where all are used evenly."""
    model = cfg.model
    moe = getattr(model, "moe", None)
    if moe is None or model.num_experts == 1 or model.moe_type != "GShard" or not moe.drop_tokens:
        return 1.0
    tokens = cfg.data.packed_length
    room = capacity(tokens, model.num_experts, top_k=moe.top_k, factor=moe.capacity_factor, least=moe.min_capacity)
    return min(1.0, room * model.num_experts / (tokens * moe.top_k))

"""What one rank of a layout holds and sends, by running the training code of that rank without memory and without the
other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evo_core.data.loader.batch import Batch
from evo_core.estimate.costs import RankCost
from evo_core.estimate.imagined import Imagined, imagined_ranks
from evo_core.estimate.step_cost import CountedStep
from evo_core.model.ops.routing import capacity
from evo_core.parallel.mesh import make_mesh

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

__all__ = ["RankCost", "quick_cost", "rank_cost"]


def rank_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The cost of a rank with all its layers.

    Raises:
        ConfigError: the job cannot run on so many ranks.
        RuntimeError: this process has a process group.
    """
    cfg.check_world(world_size)
    cfg = _interpreted(cfg)
    with imagined_ranks(world_size, rank):
        mesh = make_mesh(cfg.degrees(world_size))
        data = cfg.data
        batch = Batch.without_targets(cfg.micro_num(mesh.data.size), data.packed_length, data.seq_len)
        with Imagined(_kept(cfg)) as mode:
            step = CountedStep(cfg, mesh, drawn=False)
            imagined = Batch(
                *(mode.from_tensor(t) for t in (batch.input_ids, batch.labels, batch.positions, batch.type_ids)),
                batch.cu_seqlens,
            )
            return step.run(imagined, data.seq_len)


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


def quick_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The same from a few layers of each stage, for a search over many layouts."""
    return rank_cost(cfg, world_size, rank)

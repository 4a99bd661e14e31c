"""Small jobs at a layout, and what a step of them really holds and sends on ranks of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from evo_core.config import TrainConfig
from evo_core.data.loader.batch import Batch
from evo_core.estimate.costs import RankCost
from evo_core.estimate.step_cost import CountedStep
from evo_core.model.ops.cache_rows import as_on_a_gpu
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import make_mesh
from evo_core.parity.job import MICRO_BSZ, SEQ_LEN, job, small_model, training
from evo_core.parity.layouts import ROWS
from tests.ranks import run_on_ranks

_ROWS = {row.name: row for row in ROWS}


def job_of(name: str, dtype: str = "float32", **blocks: object) -> TrainConfig:
    """The small job of a row of `evo parity`, which reads no data here."""
    row = _ROWS[name]
    layout = {"parallel": row.layout.parallel, "model": {"num_chunks": row.layout.chunks}}
    few = {"data": {"global_batch_tokens": SEQ_LEN * MICRO_BSZ * 4}}
    return job(small_model(), training(Path("nowhere")), row.model, few, row.way, layout, blocks, dtype=dtype)


def ranks_of(name: str) -> int:
    """The ranks of a row."""
    return _ROWS[name].layout.ranks


def counted(jobs: Iterable[TrainConfig], ranks: int) -> list[list[RankCost]]:
    """By job and rank, what real ranks count in a step."""
    jobs = list(jobs)
    of_ranks = run_on_ranks(lambda: [_counted_here(cfg) for cfg in jobs], ranks, timeout=120)
    return [list(each) for each in zip(*of_ranks, strict=True)]


def _counted_here(cfg: TrainConfig) -> RankCost:
    mesh = make_mesh(Degrees.of(cfg.parallel, dist.get_world_size(), cfg.model.num_experts))
    data = cfg.data
    batch = Batch.without_targets(cfg.micro_num(mesh.data.size), data.packed_length, data.seq_len)
    torch.manual_seed(mesh.data.rank)
    batch.input_ids = torch.randint(cfg.model.vocab_size, batch.input_ids.shape)
    batch.labels = batch.input_ids.roll(-1, 1)
    with as_on_a_gpu():  # whose kernels keep more for the backward pass than those of a CPU
        return CountedStep(cfg, mesh, drawn=True).run(batch, data.seq_len)

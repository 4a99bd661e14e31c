"""What a run says of itself before its first step: once, from one rank."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.config.addresses import written_out
from evo_core.config.locations import unprefixed_save
from evo_core.data.shards.targets import NO_TARGETS, types_without_targets
from evo_core.errors import DataError
from evo_core.model import Decoder, attention_kernel, count_parameters
from evo_core.parallel.collectives import gather_objects
from evo_core.parallel.pipeline.placing import placing_of
from evo_core.placement import dtype_of
from evo_core.storage.stage import stage

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.data.loader.prefetch import BatchSource
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.mesh import Mesh
    from evo_core.parallel.process_group import Ranks

log = logging.getLogger(__name__)


def log_ranks(cfg: TrainConfig, ranks: Ranks, mesh: Mesh, folder: Path) -> None:
    """Sizes, seeds, the run's name, and who runs where; every rank must call it."""
    own: dict[str, int | str] = {"rank": ranks.rank}
    if mesh.pipeline.size > 1:
        own["pp"] = mesh.pipeline.rank
    own |= {"dp": mesh.data.rank, "zero": mesh.zero.rank}
    if mesh.tensor.size > 1:
        own["tp"] = mesh.tensor.rank
    if mesh.weights is not None:
        own["wp"] = mesh.weights.cut.rank
    if mesh.experts is not None:
        own["ep"] = mesh.experts.cut.rank
    own["local"] = ranks.local_rank
    if mesh.pipeline.size > 1:
        own["layers"] = _layers(cfg, mesh)
    own |= {"device": str(ranks.device), "host": socket.gethostname()}
    everyone = gather_objects(own)
    log.info(
        "Distributed environment is initialized, data parallel size: %d, pipeline parallel size: %d, "
        "tensor parallel size: %d%s",
        mesh.data.size,
        mesh.pipeline.size,
        mesh.tensor.size,
        "".join(
            f", {what} parallel size: {axes.cut.size}"
            for what, axes in (("weight", mesh.weights), ("expert", mesh.experts))
            if axes is not None
        ),
    )
    log.info("seed %d: weights are drawn from (seed, name), data from (seed, step), alike on every rank", cfg.seed)
    host, name = everyone[0]["host"], time.strftime("%b%d_%H-%M-%S")
    log.info("=========== New Run %s of %s on host:%s, folder %s ===========", name, cfg.shown.job_name, host, folder)
    if (
        mesh.is_log_rank
        and cfg.ckpt.enable_save_ckpt
        and (said := unprefixed_save(cfg, "ckpt.save_ckpt_folder")) is not None
    ):
        log.warning("%s", said)
    log.info("ranks:\n%s", "\n".join(_table(everyone)))


def _layers(cfg: TrainConfig, mesh: Mesh) -> str:
    """The blocks of each stage on this rank: ``0-3,8-11``."""
    placing = placing_of(cfg)
    every = placing.cut(cfg.model.num_layers)
    blocks = [every[stage].blocks for stage in placing.stages_of(mesh.pipeline.rank)]
    return ",".join(f"{of[0]}-{of[-1]}" if len(of) > 1 else f"{of[0]}" for of in blocks)


def _table(rows: Sequence[Mapping[str, int | str]]) -> list[str]:
    """One line for the names of columns, and one for each row; numbers and layers to the right."""
    width = max(len("layers"), *(len(str(row.get("layers", ""))) for row in rows))

    def line(row: Mapping[str, int | str]) -> str:
        *numbers, device, host = row.items()
        shown = (f"{value:>{width if name == 'layers' else 5}}" for name, value in numbers)
        return f"{' '.join(shown)}  {device[1]:8} {host[1]}"

    return [line({name: name for name in rows[0]}), *map(line, rows)]


def log_parts(
    cfg: TrainConfig,
    ranks: Ranks,
    mesh: Mesh,
    model: nn.Module,
    optimizer: Optimizer,
    data: BatchSource,
) -> None:
    """Model, data, kernels, and the settings that change nothing here; every rank must call it."""
    total = cfg.data.total_steps
    log.info("Number of elements on ranks: %s", _shares(optimizer, mesh))
    log.info(
        "model %s: %s parameters in %s; %s%s in %s, %d threads per rank",
        cfg.model_type,
        f"{count_parameters(model):,}",
        dtype_of(model),
        _attention(model, ranks.device),
        "fused AdamW" if cfg.optimizer.name == "adamw" else "Muon for matrices and fused AdamW",
        optimizer.dtype,
        torch.get_num_threads(),
    )
    micro_num = cfg.micro_num(mesh.data.size)
    log.info(
        "data: %s; a step is %s tokens (%d micro-batches of %d on each of %d data-parallel ranks), %d steps",
        data.describe(),
        f"{micro_num * mesh.data.size * cfg.data.packed_length:,}",
        micro_num,
        cfg.data.packed_length,
        mesh.data.size,
        total,
    )
    if mesh.is_log_rank:
        _say_without_targets(cfg, data)
    if addresses := written_out(cfg):
        log.warning(
            "%s: an address is a secret, and stands in the job's file: write ${oc.env:NAME}", ", ".join(addresses)
        )
    without = cfg.settings_without_effect(ranks.device.type)
    if without:
        log.info("set, but without effect here: %s", "; ".join(without))


def _shares(optimizer: Optimizer, mesh: Mesh) -> str:
    """Elements by the ranks that share the optimizer's state; of a pipeline for each rank of it.

    With isp not all of the state is shared by as many ranks.
    """
    axes = [mesh.zero, *([] if mesh.weights is None else [mesh.weights.zero])]
    shares = gather_objects(optimizer.share, max(axes, key=lambda axis: axis.size).group)
    if mesh.pipeline.size == 1:
        return str(shares)
    of_each = gather_objects(shares, mesh.pipeline.group)
    return ", ".join(f"{shares} (pipeline rank {number})" for number, shares in enumerate(of_each))


def _say_without_targets(cfg: TrainConfig, data: BatchSource) -> None:
    if data.trained is not None and not any(data.trained.values()):
        log.warning("data.train_folder %s: %s", cfg.data.train_folder, NO_TARGETS)
    if cfg.data.valid_folder is None or not cfg.data.valid_every:
        return
    with suppress(DataError):  # what is wrong with held-out data is said when they are read
        for name in types_without_targets(stage(cfg.data.valid_folder)):
            log.warning("data.valid_folder %s: type %s gives no score, %s", cfg.data.valid_folder, name, NO_TARGETS)


def _attention(model: nn.Module, device: torch.device) -> str:
    """Which kernel attends, and why; of a model type of a user's own nothing is known."""
    if not isinstance(model, Decoder):
        return ""
    cfg = model.cfg
    flash, dropout = cfg.use_flash_attn, cfg.attn_drop_rate
    name, why = attention_kernel(device, model.dtype, flash, head_dim=cfg.head_dim, dropout=dropout)
    return f"attention {name} ({why}), "

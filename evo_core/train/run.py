"""From the configuration of a job to the parts of a run: everything that there is before the first step."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.checkpoint import TrainState
from evo_core.checkpoint.finite import check_model_finite
from evo_core.data import Prefetch, open_source
from evo_core.data.loader.train_data import batch_size
from evo_core.errors import ConfigError
from evo_core.model import compile_blocks
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import failing_together, on_first
from evo_core.parallel.first_weights import draw_first_weights
from evo_core.parallel.pipeline.placing import placing_of
from evo_core.placement import dtype_of
from evo_core.train.checkpointing import Checkpointing
from evo_core.train.continuation import check_continuation
from evo_core.train.metric_log import MetricLog
from evo_core.train.optimizer import check_no_decay, make_optimizer
from evo_core.train.peaks import log_peak
from evo_core.train.reading import check_same_data
from evo_core.train.schedule_told import say_changed_schedule, say_unfinished_schedule
from evo_core.train.start import find_start, run_of, take_start
from evo_core.train.startup_log import log_parts, log_ranks
from evo_core.train.step import TrainStep
from evo_core.train.stop_file import StopFile
from evo_core.train.throughput import Throughput

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.data.loader.prefetch import BatchSource
    from evo_core.monitor.monitoring import Monitoring
    from evo_core.parallel.mesh import Mesh
    from evo_core.parallel.process_group import Ranks
    from evo_core.train.run_log import RunLog
    from evo_core.train.start import Start

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRun:
    """The parts of a run, made and loaded, on one rank.

    Attributes:
        folder: where its log and curve go.
        data: this rank's batches by step.
        step: what is done with a batch.
        saving: when and how it saves.
        state: where it is; changes with every step.
    """

    cfg: TrainConfig
    ranks: Ranks
    mesh: Mesh
    folder: Path
    data: BatchSource
    step: TrainStep
    saving: Checkpointing
    state: TrainState
    lines: RunLog
    monitor: Monitoring

    def batches(self) -> Prefetch:
        """The batches that are left, drawn ahead; a context manager, whose end also closes `data`."""
        data = self.cfg.data
        tensor = self.mesh.tensor
        return Prefetch(self.data, self.state.step, data.total_steps, workers=data.num_worker, tensor=tensor)

    def metric_log(self) -> MetricLog:
        """What takes the records of the steps that are left; a context manager. Every rank must call it.

        Raises:
            UserError: one of its files cannot be written, or records to carry on are not there; on every rank.
        """
        with failing_together():
            return MetricLog(self.cfg, self.folder, self.state.step, keeps=self.mesh.is_log_rank, lines=self.lines)


def make_run(
    cfg: TrainConfig,
    folder: Path | None,
    init: Start | None,
    ranks: Ranks,
    mesh: Mesh,
    lines: RunLog,
    monitor: Monitoring,
) -> TrainRun:
    """Make the parts of a run and load what it starts from; every rank must call it.

    Args:
        folder: where log and curve go; None as in `loop.train`.
        init: what to start from where there is nothing to resume.
        lines: the log, which from here on is kept in the folder.
        monitor: who watches over the run; told when it is about to begin.

    Raises:
        UserError: configuration, data or checkpoint do not fit.
    """
    set_kernels(cfg)
    start = find_start(cfg, init, first=mesh.is_log_rank)
    folder = run_folder(cfg, folder, start)
    lines.keep_in(folder)
    monitor.keep_in(folder)
    log_ranks(cfg, ranks, mesh, folder)

    if start is not None and not start.resumes:
        on_first(partial(check_continuation, cfg, start))
    with failing_together():  # ranks that share a model are told by the one that reads, the others here
        data = open_source(cfg, dp_rank=mesh.data.rank, dp_size=mesh.data.size, tensor=mesh.tensor)
    check_same_data(cfg, data)
    model = make_model(cfg, mesh, ranks.device, drawn=start is None or not start.fills_the_model)
    optimizer = make_optimizer(cfg, model, mesh)
    peak = log_peak(ranks.device, dtype_of(model))
    speed = Throughput.of(cfg, world_size=ranks.world_size, dp=mesh.data.size, peak=peak)
    batch_tokens = speed.step_tokens(cfg.micro_num(mesh.data.size))
    state = TrainState()
    if start is not None:
        start, state = take_start(start, cfg, model, optimizer, data, batch_tokens, mesh)
        check_model_finite(model, start.checkpoint)
    state.data_digest, state.batch_tokens, state.seed = data.digest, batch_tokens, cfg.seed
    state.batch_growth = batch_size(cfg, mesh.data.size).growth
    state.folder = str(folder.absolute())
    log_parts(cfg, ranks, mesh, model, optimizer, data)
    on_first(partial(_say_schedules, cfg, start, state))

    saving = Checkpointing(
        cfg,
        run_of(start, cfg),
        mesh,
        model,
        optimizer,
        stop=ranks.stop,
        stop_file=StopFile(cfg.ckpt.stop_file_path, reads=mesh.is_log_rank),
        newest=start.checkpoint if start is not None and start.resumes else None,
    )
    step = TrainStep(cfg, mesh, model, optimizer, speed=speed, types=data.types, device=ranks.device)
    monitor.begins(state.step, state.skipped_updates, start.checkpoint if start is not None and start.resumes else None)
    return TrainRun(cfg, ranks, mesh, folder, data, step, saving, state, lines, monitor)


def _say_schedules(cfg: TrainConfig, start: Start | None, state: TrainState) -> None:
    say_unfinished_schedule(cfg)
    if start is not None and start.kind == "evo" and start.goes_on:
        say_changed_schedule(cfg, start.checkpoint, state.updates)


def make_model(cfg: TrainConfig, mesh: Mesh, device: torch.device, *, drawn: bool) -> nn.Module:
    """What this rank holds of the model of a job, its blocks compiled where the job says so; every rank must call it.

    Args:
        drawn: whether to draw first weights; else they are left to be loaded.
    """
    tensor, weight = cfg.parallel.tensor, cfg.parallel.weight
    model = build_parallel(
        cfg.model,
        mesh,
        device,
        mode=tensor.mode,
        placing=placing_of(cfg),
        overlap=weight.overlap,
        memory_pool=weight.memory_pool,
    )
    check_no_decay(model, cfg.adam.no_decay)
    if drawn:
        draw_first_weights(model, cfg.model, cfg.seed, mesh)
    if getattr(cfg.model, "compile", False):  # a model type of a user's own need not have the setting
        log.info("%d blocks are compiled in the first step", compile_blocks(model))
    return model


def run_folder(cfg: TrainConfig, folder: Path | None, start: Start | None) -> Path:
    """The run's folder, made: the one asked for, else that of the resumed run, else a new one. Every rank must call it.

    Raises:
        ConfigError: it cannot be made, or `job_name` cannot be a folder's.
    """
    if folder is None:  # found by one rank: clocks differ, and not every machine may see the folder there was
        folder = on_first(lambda: _folder_before(start) or Path("RUN") / cfg.run_name / time.strftime("%m-%d-%H.%M.%S"))
    with failing_together():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "name a folder for log and curve with --folder, or start where one can be made"
            raise ConfigError(f"cannot be made: {error.strerror}", file=folder, hint=hint) from error
    return folder


def _folder_before(start: Start | None) -> Path | None:
    """The folder of the run that is resumed, where it is still there."""
    if start is None or not start.resumes:
        return None
    before = TrainState.read(start.checkpoint).folder
    return Path(before) if before and Path(before).is_dir() else None


def set_kernels(cfg: TrainConfig) -> None:
    """Process-wide switches of cuDNN. TF32 is switched by building the model."""
    torch.backends.cudnn.deterministic = cfg.cudnn_deterministic
    torch.backends.cudnn.benchmark = cfg.cudnn_benchmark

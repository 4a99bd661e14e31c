"""The training loop, top to bottom."""

from __future__ import annotations

import gc
import logging
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evo_core.checkpoint import TrainState, save
from evo_core.data import Prefetch, open_source
from evo_core.errors import ConfigError
from evo_core.evaluate.holdout import holdout
from evo_core.model import build_model, compile_blocks, init_weights
from evo_core.parallel import process_group
from evo_core.parallel.collectives import on_first
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.parallel.process_group import Ranks
from evo_core.storage.location import local_path
from evo_core.train.metric_log import MetricLog
from evo_core.train.metrics import StepTotals, Throughput, segments
from evo_core.train.optimizer import draws_of_micro_batch, make_optimizer, make_schedules, set_kernels
from evo_core.train.run_log import RunLog, logging_of_run
from evo_core.train.start import Start, data_cursors, find_start, run_of, save_folder, take_start
from evo_core.train.startup_log import log_parts, log_ranks
from evo_core.train.stop_file import StopFile, ends, saves

if TYPE_CHECKING:
    from torch import nn

    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: steps done.
        loss: of the last step; None where none was trained on.
        checkpoint: the newest one of this run; None where nothing is saved.
        stopped: whether a signal ended it before its time.
    """

    step: int
    loss: float | None
    checkpoint: Path | None
    stopped: bool = False


def train(
    cfg: TrainConfig, *, folder: Path | None = None, init: Start | None = None, ranks: Ranks | None = None
) -> TrainResult:
    """Run a training job to its end, from its newest checkpoint if it has one.

    Args:
        cfg: the job.
        folder: where its log and curve go; None goes on in the folder of the resumed run, else makes
            ``RUN/<job name>/<date>``.
        init: a checkpoint to start from where the run has none of its own to resume.
        ranks: this process among all; None joins them by the environment.

    Raises:
        UserError: configuration, data or checkpoint do not fit.
    """
    if ranks is None:
        with process_group.ranks(catch_stop=True) as joined:
            return train(cfg, folder=folder, init=init, ranks=joined)
    cfg.check_world(ranks.world_size)
    mesh = make_mesh(cfg.degrees(ranks.world_size), device_type=ranks.device.type)
    with logging_of_run(speaks=mesh.is_log_rank) as lines:
        return _train(cfg, folder, init, ranks, mesh, lines)


def _train(
    cfg: TrainConfig, folder: Path | None, init: Start | None, ranks: Ranks, mesh: Mesh, lines: RunLog
) -> TrainResult:
    set_kernels(cfg)
    start = find_start(cfg, init, first=mesh.is_log_rank)
    folder = _run_folder(cfg, folder, start)
    lines.keep_in(folder)
    log_ranks(cfg, ranks, mesh, folder)

    data = open_source(cfg, dp_rank=mesh.data.rank, dp_size=mesh.data.size)
    model = build_model(cfg.model, device=ranks.device)
    if start is None:
        init_weights(model, cfg.model, cfg.seed)
    if getattr(cfg.model, "compile", False):
        compiled = compile_blocks(model)
        if mesh.is_log_rank:
            log.info("%d blocks are compiled in the first step", compiled)
    optimizer = make_optimizer(cfg, model, mesh)
    lr, beta2 = make_schedules(cfg)
    speed = Throughput.of(cfg, world_size=ranks.world_size, dp=mesh.data.size)
    batch_tokens = speed.step_tokens(cfg.micro_num(mesh.data.size))
    state = TrainState() if start is None else take_start(start, cfg, model, optimizer, data, batch_tokens, mesh)
    state.data_digest, state.batch_tokens, state.seed = data.digest, batch_tokens, cfg.seed
    state.folder = str(folder.absolute())
    log_parts(cfg, ranks, mesh, model, optimizer, data)

    root, run = save_folder(cfg), run_of(start, cfg)
    checkpoint = start.checkpoint if start is not None and start.resumes else None
    stop_file = StopFile(cfg.ckpt.stop_file_path, reads=mesh.is_log_rank)
    total_steps, stopped, ended = cfg.data.total_steps, False, False

    with (
        Prefetch(data, state.step, total_steps, workers=cfg.data.num_worker) as feed,
        MetricLog(cfg, folder, state.step, keeps=mesh.is_log_rank) as metric_log,
    ):
        while state.step < total_steps and not (stopped or ended):
            step, began, asked = state.step, time.perf_counter(), 0

            if cfg.data.skips(step):
                batch_micro_num = feed.batch(step).micro_num
                record: dict[str, Any] = {
                    "step": step,
                    "loss": None,
                    "num_consumed_tokens": state.tokens + speed.step_tokens(batch_micro_num),
                    "inf_nan_skip_batches": state.skipped_updates,
                    "skip_batches": True,
                }
                if mesh.is_log_rank:
                    log.info("step=%d is in skip_batches: its batch is drawn and not trained on", step)
            else:
                # Forward and backward of every micro-batch; the last backward reduces the gradients.
                batch = feed.batch(step)
                cut, batch_micro_num = segments(batch.cu_seqlens), batch.micro_num
                batch = batch.to(ranks.device, non_blocking=True)
                totals = StepTotals(data.types, ranks.device)
                totals.tell(stop=ranks.stop.requested, stop_file=stop_file.read())
                optimizer.begin()
                computing = time.perf_counter()
                for i in range(batch_micro_num):
                    draws = draws_of_micro_batch(model, cfg.seed, step, i * mesh.data.size + mesh.data.rank)
                    output = model(
                        batch.input_ids[i],
                        batch.positions[i],
                        batch.cu_seqlens[i],
                        labels=batch.labels[i],
                        max_seqlen=cut["largest_length"],
                        label_smoothing=cfg.loss.label_smoothing,
                        **draws,
                    )
                    totals.add_loss(output.loss / batch_micro_num)
                    if output.moe_loss is not None:
                        totals.add_moe_loss(output.moe_loss / batch_micro_num)
                    totals.add_tokens(output.nll, output.hit, batch.labels[i], batch.type_ids[i])
                    objective = output.objective(cfg.loss.moe_loss_coeff) / batch_micro_num
                    optimizer.backward(objective, last=i == batch_micro_num - 1)
                grad_norm = optimizer.reduce(totals.vector)
                fwd_bwd_time = time.perf_counter() - computing

                # From here on every rank knows the sums of all, and all decide alike.
                totals.vector = totals.vector.cpu()  # one copy instead of one for every number
                if optimizer.step(lr(state.updates), beta2(state.updates)):
                    state.updates += 1
                else:
                    state.skipped_updates += 1
                state.loss = totals.loss / mesh.data.size
                stopped, asked = totals.stop, totals.stop_file
                seconds = time.perf_counter() - began
                record = {
                    "tflops": speed.tflops(batch_micro_num, seconds),
                    "step": step,
                    "loss": state.loss,
                    "tgs (tokens/gpu/second)": round(speed.tgs(batch_micro_num, seconds), 2),
                    "lr": lr(state.updates),
                    "loss_scale": optimizer.scaler.scale,
                    "grad_norm": grad_norm,
                    "micro_num": batch_micro_num,
                    "num_consumed_tokens": state.tokens + speed.step_tokens(batch_micro_num),
                    "inf_nan_skip_batches": state.skipped_updates,
                    **cut,
                    "adam_beta2": beta2(state.updates),
                    "fwd_bwd_time": round(fwd_bwd_time, 2),
                    **totals.moe(mesh.data.size),
                    **totals.quality(),
                    "tokens_per_second": round(speed.step_tokens(batch_micro_num) / seconds, 1),
                    "step_time": round(seconds, 4),
                    "time": time.time(),
                }
                metric_log.step(record, seconds=seconds)

            state.step += 1
            state.tokens += speed.step_tokens(batch_micro_num)
            ended = ends(asked, state.step)

            if cfg.data.valid_every and state.step % cfg.data.valid_every == 0 and not stopped:
                record |= _evaluate(cfg, model, ranks, mesh, step)
            metric_log.keep(record)

            due = state.step % cfg.ckpt.checkpoint_every == 0 or state.step == total_steps
            due = due or stopped or saves(asked, state.step)
            snapshot = cfg.ckpt.oss_snapshot_freq > 1 and state.step % cfg.ckpt.oss_snapshot_freq == 0
            if root is not None and (due or snapshot):
                began = time.perf_counter()
                state.moments, state.scaler = optimizer.updates, optimizer.scaler.state()
                if data.sequential:
                    state.data_cursors = data_cursors(feed, mesh)
                checkpoint = save(root, cfg, model, optimizer.state(), state, snapshot=not due, run=run)
                if mesh.is_log_rank:
                    log.info("saved %s in %.1f s", checkpoint, time.perf_counter() - began)

            if state.step % _interval(cfg) == 0:
                _clean_up(ranks, mesh)

    if mesh.is_log_rank:
        how = "stopped by a signal" if stopped else "ended by the stop file" if ended else "finished"
        log.info("%s at step %d of %d, newest checkpoint: %s", how, state.step, total_steps, checkpoint)
    return TrainResult(state.step, state.loss, checkpoint, stopped)


def _evaluate(cfg: TrainConfig, model: nn.Module, ranks: Ranks, mesh: Mesh, step: int) -> dict[str, float]:
    """Held-out scores by type, as fields of a step's record."""
    began = time.perf_counter()
    scores = holdout(
        model,
        None if cfg.data.valid_folder is None else local_path(cfg.data.valid_folder),
        seq_len=cfg.data.seq_len,
        micro_bsz=cfg.data.micro_bsz,
        dp_rank=mesh.data.rank,
        dp_size=mesh.data.size,
        group=mesh.data.group,
        device=ranks.device,
        mask_token_zero=cfg.data.mask_token_zero,
        vocab_size=cfg.model.vocab_size,
    )
    fields = {}
    for name, score in scores.items():
        fields[f"val/{name}_loss"] = score["loss"]
        fields[f"val/{name}_acc"] = score["acc"]
        fields[f"val/{name}_plex"] = score["perplexity"]
    if mesh.is_log_rank:
        shown = ",".join(f"{name}={value:.4f}" for name, value in fields.items())
        log.info("evaluation after step=%d in %.1f s: %s", step, time.perf_counter() - began, shown)
    return fields


def _run_folder(cfg: TrainConfig, folder: Path | None, start: Start | None) -> Path:
    """The run's folder, made: the one asked for, else that of the resumed run, else a new one.

    Raises:
        ConfigError: it cannot be made, or `job_name` cannot be a folder's.
    """
    if folder is None and start is not None and start.resumes:
        before = TrainState.read(start.checkpoint).folder
        folder = Path(before) if before and Path(before).is_dir() else None
    if folder is None:  # named by one rank: clocks differ
        name = cfg.run_name
        folder = on_first(lambda: Path("RUN") / name / time.strftime("%m-%d-%H.%M.%S"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "name a folder for log and curve with --folder, or start where one can be made"
        raise ConfigError(f"cannot be made: {error.strerror}", file=folder, hint=hint) from error
    return folder


def _interval(cfg: TrainConfig) -> int:
    """Steps between two clean-ups; as in the original 0 or less means 50."""
    interval = cfg.data.empty_cache_and_diag_interval
    return interval if interval > 0 else 50


def _clean_up(ranks: Ranks, mesh: Mesh) -> None:
    """Give back cached memory and say how much is in use."""
    gc.collect()
    usage = f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
        usage += (
            f", GPU memory allocated {torch.cuda.memory_allocated() / 2**30:.2f} GB, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GB, "
            f"reserved {torch.cuda.memory_reserved() / 2**30:.2f} GB"
        )
    if mesh.is_log_rank:
        log.info("memory of rank %d: %s", ranks.rank, usage)

"""Starts from checkpoints of other systems: what of them is taken, and what a run is told that asks for more."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from evo_core.checkpoint import TrainState
from evo_core.checkpoint.allowed import Allow, content_to_state
from evo_core.errors import CheckpointError
from evo_core.storage.location import Location
from evo_core.train.schedule_told import say_differences
from evo_core.weights import Kind, fill_model, open_weights, other_settings
from evo_core.weights.in_store import newest_internevo
from evo_core.weights.internevo.progress import Progress, Schedule, read_progress

if TYPE_CHECKING:
    from torch import nn

    from evo_core.config import TrainConfig
    from evo_core.optim.protocol import Optimizer
    from evo_core.train.start import Start

_MODEL_ALONE = ("model",)
_OF_INTERNEVO = ("model", "scheduler")

log = logging.getLogger(__name__)


def check_content(kind: Kind, content: Collection[str], folder: Location, allow: Allow) -> None:
    """Refuse what is not read of another system's folder.

    Args:
        allow: of the start, which says where it was stated.

    Raises:
        CheckpointError: with what to write.
    """
    readable = _OF_INTERNEVO if kind == "internevo" else _MODEL_ALONE
    if "model" in content and set(content) <= set(readable):
        return
    taken = (
        f"of InternEvo's checkpoints ({folder}) the model is read, and step, tokens and position in the schedules, "
        "neither optimizer nor place in the data"
        if kind == "internevo"
        else f"of another system's checkpoint ({folder}) only the model is read, neither optimizer nor schedule nor "
        "place in the data"
    )
    key, hint = content_to_state(readable, allow)
    raise CheckpointError(f"{', '.join(content)}: {taken}", key=key, hint=hint)


def refuse_to_resume(save_folder: Location) -> None:
    """Refuse to start from scratch where InternEvo saved: who resumes there means to go on.

    Raises:
        CheckpointError: its checkpoints are there.
    """
    newest = newest_internevo(save_folder)
    if newest is None:
        return
    raise CheckpointError(
        f"holds a checkpoint of InternEvo ({newest}), of which the model is read, and step, tokens and position in the "
        "schedules, neither optimizer nor place in the data: no run resumes from it",
        file=save_folder,
        key="ckpt.auto_resume",
        hint=f'to go on from it write auto_resume: false and load_ckpt_info: {{path: "{newest}", '
        'content: ["model", "scheduler"], ckpt_type: internevo}; to begin anew name another save_ckpt_folder',
    )


def take_foreign(start: Start, cfg: TrainConfig, model: nn.Module, optimizer: Optimizer) -> TrainState:
    """The weights of another system's folder, and how far an InternEvo run was; Adam's moments begin anew.

    Each rank reads what it holds by itself.

    Raises:
        CheckpointError: the folder does not fit the model, or does not say how far its run was.
    """
    weights = open_weights(Path(start.checkpoint), start.kind, model=cfg.model, whole=False)
    progress = read_progress(weights.folder) if "scheduler" in start.content else None
    if progress is not None:
        _check_schedule(progress, cfg, weights.folder)
    taken = fill_model(model, weights, start.allow)
    optimizer.restored(updates=0)
    if dist.get_rank() == 0:
        taken.tell(weights.folder)
        for difference in other_settings(weights.model, cfg.model):
            log.warning("%s: %s", start.checkpoint, difference)
        if progress is not None:
            _tell(progress, cfg, weights.folder)
    if progress is None:
        return TrainState()
    return TrainState(
        step=progress.step,
        tokens=progress.tokens,
        updates=progress.updates,
        skipped_updates=progress.skipped_updates,
    )


def _check_schedule(progress: Progress, cfg: TrainConfig, folder: Path) -> None:
    """Refuse a job that has nothing left to do, or says the position in a schedule itself."""
    total = cfg.data.total_steps
    if progress.step >= total:
        raise CheckpointError(
            f"{total}: {progress.step} steps are behind the checkpoint ({folder}), so none is left",
            key="data.total_steps",
            hint='state more; or begin at step 0 from the weights alone: content: ["model"]',
        )
    stated = {
        "lr_scheduler.last_epoch": cfg.lr_scheduler.last_epoch,
        "beta2_scheduler.cur_iter": cfg.beta2_scheduler.cur_iter,
    }
    for key, value in stated.items():
        if value >= 0:
            message = f"{value}: the checkpoint ({folder}) says the position in the schedules, which would be added"
            raise CheckpointError(message, key=key, hint="leave it out")


def _tell(progress: Progress, cfg: TrainConfig, folder: Path) -> None:
    log.info(
        "%s: going on at step %d, %s tokens, %d updates into the schedules; Adam's moments begin anew, and data are "
        "this run's, from its batch %d on",
        folder,
        progress.step,
        f"{progress.tokens:,}",
        progress.updates,
        progress.step,
    )
    rate, there = cfg.lr_scheduler, progress.schedule
    here = Schedule(cfg.adam.lr, rate.init_steps + rate.warmup_steps, rate.total_steps, rate.eta_min)
    settings: dict[str, tuple[object, object]] = {
        "adam.lr": (there.lr, here.lr),
        "lr_scheduler: init_steps and warm-up": (there.before_decay, here.before_decay),
        "lr_scheduler.total_steps": (there.total_steps, here.total_steps),
        "lr_scheduler.eta_min": (there.eta_min, here.eta_min),
        "lr_scheduler.kind": ("cosine", rate.kind),
    }
    say_differences(folder, settings)

"""What a run starts from: its own newest checkpoint, another run's, or nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.checkpoint import TrainState, load, newest_sound, verify
from evo_core.checkpoint.folder import resolve
from evo_core.config import local_path
from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import on_first

if TYPE_CHECKING:
    from torch import nn

    from evo_core.config import TrainConfig
    from evo_core.data import TrainData
    from evo_core.optim.hybrid_zero import HybridZeroOptimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from and what to take of it; `resumes` says that it is the run's own."""

    checkpoint: Path
    content: tuple[str, ...]
    resumes: bool


def find_start(cfg: TrainConfig, init: Start | None = None, *, first: bool) -> Start | None:
    """Choose and verify what the run starts from; every rank must call it.

    Args:
        init: what to start from where there is nothing to resume.
        first: whether this rank says what was chosen.

    Raises:
        CheckpointError: what ``load_ckpt_info`` names is not there or is damaged.
    """
    info = cfg.ckpt.load_ckpt_info
    if init is None and not cfg.ckpt.auto_resume and info is not None:
        init = Start(Path(info.path), tuple(info.content), resumes=False)
    if cfg.ckpt.auto_resume:
        folder = save_folder(cfg)
        found = newest_sound(folder) if folder is not None else None
        if found is not None:
            outcome = f"resuming from {found[0]}"
        else:
            why = f"no complete checkpoint in {folder}" if folder else "nothing is saved (ckpt.enable_save_ckpt)"
            outcome = f"{why}: from scratch" if init is None else why
        if first and info is not None:
            log.warning(
                "auto_resume: %s; load_ckpt_info (%s) is not read: set auto_resume to False to start from it",
                outcome,
                info.path,
            )
        elif first:
            log.info("auto_resume: %s", outcome)
        if found is not None:
            return Start(found[0], ("all",), resumes=True)
    if init is None:
        return None
    path = on_first(lambda: resolve(init.checkpoint))
    verify(path)
    if first:
        log.info("starting from %s (%s)", path, ", ".join(init.content))
    return Start(path, init.content, resumes=False)


def take_start(
    start: Start, cfg: TrainConfig, model: nn.Module, optimizer: HybridZeroOptimizer, data: TrainData, batch_tokens: int
) -> TrainState:
    """Load the chosen checkpoint.

    Raises:
        CheckpointError: it does not fit the model, or its place in the data is one in other data.
    """
    state = load(start.checkpoint, model, optimizer, start.content)
    if state.step == 0:
        return state
    if state.data_digest != data.digest:
        raise CheckpointError(
            f"was trained on other data, or the same in another order (data {state.data_digest[:12]} there, "
            f"{data.digest[:12]} here): step {state.step} would not be where it stopped",
            file=start.checkpoint,
            hint="go on with the same data, seed and lengths; or start from its weights alone: ckpt.auto_resume false, "
            'ckpt.load_ckpt_info {path: ..., content: ["model"]}',
        )
    if state.batch_tokens != batch_tokens:
        raise CheckpointError(
            f"was trained with {state.batch_tokens} tokens a step, this run has {batch_tokens}: step {state.step} "
            "would not be where it stopped",
            file=start.checkpoint,
            hint=f"write data.global_batch_tokens: {state.batch_tokens} in place of data.micro_num",
        )
    return state


def save_folder(cfg: TrainConfig) -> Path | None:
    """Where the run saves; None where it saves nothing."""
    if not cfg.ckpt.enable_save_ckpt or cfg.ckpt.save_ckpt_folder is None:
        return None
    return local_path(cfg.ckpt.save_ckpt_folder)

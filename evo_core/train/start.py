"""What a run starts from: its own newest checkpoint, another run's, or nothing."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from evo_core.checkpoint import Candidates, TrainState, load, verify
from evo_core.checkpoint import folder as folders
from evo_core.checkpoint.allowed import NOTHING, Allow
from evo_core.checkpoint.run import UNKNOWN, Run
from evo_core.data.loader.order import BatchSize
from evo_core.data.loader.train_data import batch_size
from evo_core.errors import CheckpointError, DamagedError
from evo_core.parallel.collectives import failing_together, gather_objects, on_first
from evo_core.parallel.environment import launch_marks, restarts
from evo_core.storage.location import Location, is_remote
from evo_core.train.checkpointing import save_folder
from evo_core.train.other_systems import check_content, refuse_to_resume, take_foreign
from evo_core.weights import Kind, locate
from evo_core.weights.in_store import folder_in_store, is_own

if TYPE_CHECKING:
    from torch import nn

    from evo_core.config import TrainConfig
    from evo_core.data.loader.prefetch import BatchSource
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.mesh import Mesh

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from and what to take of it.

    Attributes:
        checkpoint: its folder; until it is found, what was written for it.
        content: "model" and what else to take, or "all".
        resumes: whether it is the run's own.
        run: the run that is resumed.
        kind: the format of the folder that was found.
        ckpt_type: the format that it was said to have.
        source: what was written for it, where that is no path.
        candidates: of the run's own checkpoints the older ones, should this one turn out to be damaged.
        allow: tensors of the model that it may lack or have beside them.
    """

    checkpoint: Location
    content: tuple[str, ...]
    resumes: bool
    run: Run = UNKNOWN
    kind: Kind = "evo"
    ckpt_type: str | None = None
    source: str | None = None
    candidates: Candidates | None = field(default=None, compare=False)
    allow: Allow = NOTHING

    @property
    def fills_the_model(self) -> bool:
        """Whether every tensor of the model is taken from it, so that none needs first weights."""
        return self.resumes or not self.allow.missing

    @property
    def goes_on(self) -> bool:
        """Whether the place in its schedules is taken of it."""
        return bool({"scheduler", "all"} & set(self.content))

    def before(self, error: DamagedError) -> Start:
        """The run's checkpoint before this one, which is damaged; every rank must call it.

        Raises:
            CheckpointError: there is none, or this one was asked for by name.
        """
        if self.candidates is None:
            raise error
        self.candidates.damaged(error)
        found = self.candidates.next()
        assert found is not None
        if dist.get_rank() == 0:
            log.info("resuming from %s", found[0])
        return replace(self, checkpoint=found[0], run=found[1])


def find_start(cfg: TrainConfig, init: Start | None = None, *, first: bool) -> Start | None:
    """Choose and verify what the run starts from; every rank must call it.

    Args:
        init: what to start from where there is nothing to resume.
        first: whether this rank says what was chosen.

    Raises:
        CheckpointError: what ``load_ckpt_info`` names is not there or is damaged; the run has checkpoints and all are
            damaged; or the save folder cannot be written to.
    """
    info = cfg.ckpt.load_ckpt_info
    if init is None and not cfg.ckpt.auto_resume and info is not None:
        content = tuple(info.content)
        allow = Allow(info.allow.missing, info.allow.unexpected)
        init = Start(Path(info.path), content, resumes=False, ckpt_type=info.ckpt_type, source=info.path, allow=allow)
    folder = save_folder(cfg)
    found = _own_checkpoint(cfg, folder, begins=init is None, first=first) if folder is not None else None
    if cfg.ckpt.auto_resume:
        if found is not None:
            outcome = f"resuming from {found.checkpoint}"
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
    elif found is not None and first:
        log.info("started again: resuming from %s, which this run saved", found.checkpoint)
    if found is not None:
        return found
    if init is None:
        return None
    found_start = _found_by_all(init)
    if found_start.kind == "evo":
        verify(found_start.checkpoint, loads=True)
    if first:
        log.info("starting from %s (%s)", found_start.checkpoint, ", ".join(init.content))
    return found_start


def _found_by_all(init: Start) -> Start:
    """The start with its folder found, the same on every rank; every rank must call it."""
    if init.source is not None and is_remote(init.source):
        source = init.source
        folder = on_first(lambda: folder_in_store(source))
        if on_first(lambda: is_own(folder)):
            return _fitting(init, "evo", folder)  # each rank reads its part of it
        with failing_together():  # every node has its own copy, and may have no room for it
            return _located(replace(init, source=folder))
    found = on_first(lambda: _located(init))
    with failing_together():
        return found if Path(found.checkpoint).is_dir() else _located(init)  # from a hub: the same


def _own_checkpoint(cfg: TrainConfig, folder: Location, *, begins: bool, first: bool) -> Start | None:
    """The checkpoint in the save folder that the run goes on from; every rank must call it.

    With auto_resume that is the newest of this job's last run, else of the last run of any. Without it a launcher that
    started the same run again (torchrun after the death of a rank, Slurm after a requeue) still goes on where it was.

    Args:
        begins: whether the run begins from scratch where there is none.
        first: whether this rank says what was found.
    """
    on_first(lambda: folders.prepare(folder))
    everything = on_first(lambda: folders.find(folder))
    if cfg.ckpt.auto_resume and begins and not any(found.complete for found in everything):
        on_first(lambda: refuse_to_resume(folder))
    run = None
    if cfg.ckpt.auto_resume:
        run = folders.newest_run(everything, job=cfg.job_mark)
    elif max(gather_objects(restarts(os.environ))):
        run = folders.newest_run(everything, job=cfg.job_mark, launch=_marks_of_all())
    candidates = Candidates(folder, run) if run is not None or cfg.ckpt.auto_resume else None
    if candidates is not None and (sound := candidates.next()) is not None:
        return Start(sound[0], ("all",), resumes=True, run=sound[1], candidates=candidates)
    if first and (there := [found for found in everything if found.complete]):
        log.warning(
            "%s is in use: %d checkpoints of other runs lie there (the newest is %s). They are left alone; this run's "
            "are saved beside them, and a restart with auto_resume goes on from this run's",
            folder,
            len(there),
            there[0].path,
        )
    return None


def run_of(start: Start | None, cfg: TrainConfig) -> Run:
    """The run as its checkpoints will name it, new or gone on with; every rank must call it.

    One that was killed in its first save begins again as the same run, which removes what that save left.
    """
    marks, folder = _marks_of_all(), save_folder(cfg)
    run = start.run if start is not None and start.resumes else None

    def begun() -> Run:
        found = folders.find(folder) if folder is not None else []
        unfinished = folders.unfinished_run(found, cfg.job_mark) if run is None and cfg.ckpt.auto_resume else None
        return (run or unfinished or Run.new()).begun_here(marks, cfg.job_mark, (each.run for each in found))

    return on_first(begun)


def _marks_of_all() -> list[str]:
    return sorted({mark for marks in gather_objects(launch_marks(os.environ)) for mark in marks})


_KINDS: dict[str | None, tuple[Kind, ...]] = {
    None: ("evo", "internevo", "llama", "hf"),
    "evo": ("evo",),
    "internevo": ("evo", "internevo"),
    "internlm": ("evo", "internevo"),
    "llama": ("llama",),
    "hf_llama": ("hf",),
    "hf_model": ("hf",),
}
"""The formats that a ``ckpt_type`` may mean; ours goes by InternEvo's name too."""


def _located(init: Start) -> Start:
    """The start with its folder found, checked against what was said of it.

    Raises:
        CheckpointError: nothing is there, it is of another format, or more than the model is asked of it.
    """
    return _fitting(init, *locate(init.source or str(init.checkpoint), whole=True))


def _fitting(init: Start, kind: Kind, folder: Location) -> Start:
    """The start with the folder that was found for it, if that is what was said of it."""
    if kind not in _KINDS[init.ckpt_type]:
        fits = next(name for name, kinds in _KINDS.items() if name and kind in kinds and name != "hf_llama")
        raise CheckpointError(
            f"{init.ckpt_type}: {folder} is in another format ({kind})",
            key="ckpt.load_ckpt_info.ckpt_type",
            hint=f"write ckpt_type: {fits}",
        )
    if kind != "evo":
        check_content(kind, init.content, folder, init.allow)
    return replace(init, checkpoint=folder, kind=kind)


def take_start(
    start: Start,
    cfg: TrainConfig,
    model: nn.Module,
    optimizer: Optimizer,
    data: BatchSource,
    batch_tokens: int,
    mesh: Mesh,
) -> tuple[Start, TrainState]:
    """Load the chosen checkpoint; of the run's own, the one before where it turns out to be damaged. Every rank must
    call it.

    Returns:
        What was loaded in the end, and where the run is by it.

    Raises:
        CheckpointError: it does not fit the model, or its place in the data is one in other data; on every rank.
    """
    while True:
        try:
            with failing_together():
                return start, _taken(start, cfg, model, optimizer, data, batch_tokens, mesh)
        except DamagedError as error:
            start = start.before(error)


def _taken(
    start: Start,
    cfg: TrainConfig,
    model: nn.Module,
    optimizer: Optimizer,
    data: BatchSource,
    batch_tokens: int,
    mesh: Mesh,
) -> TrainState:
    if start.kind != "evo":
        return take_foreign(start, cfg, model, optimizer)
    allow = None if start.resumes else start.allow
    state = load(start.checkpoint, model, optimizer, start.content, allow)
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
    there = len(state.data_cursors)
    if data.sequential and there != mesh.data.size:
        raise CheckpointError(
            f"each of {there} data-parallel ranks has its place in the stream of data there, and here are "
            f"{mesh.data.size} of them",
            file=start.checkpoint,
            hint=f"go on with {there} data-parallel ranks; or start from its weights alone: ckpt.auto_resume false, "
            'ckpt.load_ckpt_info {path: ..., content: ["model"]}',
        )
    if state.batch_tokens != batch_tokens:
        raise CheckpointError(
            f"was trained with {state.batch_tokens} tokens a step, this run has {batch_tokens}: step {state.step} "
            "would not be where it stopped",
            file=start.checkpoint,
            hint=f"write data.global_batch_tokens: {state.batch_tokens} in place of data.micro_num",
        )
    if not data.sequential:
        _check_growth(start.checkpoint, state, batch_size(cfg, mesh.data.size), mesh.data.size)
    if data.sequential:
        data.restore(state.data_cursors[mesh.data.rank])
    return state


def _check_growth(checkpoint: Location, state: TrainState, here: BatchSize, ranks: int) -> None:
    """Require the steps so far to have had the sizes that they would have here: else the next has other data.

    Args:
        ranks: data-parallel ones; each has the configured number of packs, so that others grow otherwise.

    Raises:
        CheckpointError: they had others.
    """
    if state.batch_growth is None:
        return
    there = BatchSize.grown(here.full, state.batch_growth)
    if there.before(state.step) == here.before(state.step):
        return
    per_rank = [number / ranks for number in state.batch_growth[:2]]
    if not state.batch_growth:
        hint = "leave data.rampup_batch_size out"
    elif all(number.is_integer() for number in per_rank):
        words = " ".join(str(int(number)) for number in (*per_rank, state.batch_growth[2]))
        hint = f'write data.rampup_batch_size: "{words}"'
    else:
        start, more, every = state.batch_growth
        hint = (
            f"begin with {start} packs over all ranks and add {more} every {every} steps: with data-parallel ranks "
            f"whose number divides {math.gcd(start, more)}"
        )
    raise CheckpointError(
        f"was trained with {there.before(state.step)} packs in its {state.step} steps, which have "
        f"{here.before(state.step)} here, since the batch grows otherwise: step {state.step} would not be where it "
        "stopped",
        file=checkpoint,
        key="data.rampup_batch_size",
        hint=hint,
    )

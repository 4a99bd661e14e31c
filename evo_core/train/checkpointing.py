"""When a run saves and ends, and how it saves: the one place that the loop asks.

A save is due at a cadence, at the last step, and where someone asks for it from outside: a signal to any rank, or a
number in the stop file (`stop_file`). What a rank hears travels with the sums of a step, so that all ranks know the
same after it and decide alike.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evo_core.checkpoint import TrainState
from evo_core.checkpoint.about import About
from evo_core.checkpoint.background import BackgroundSaves
from evo_core.checkpoint.saving import ending_ids_of, tensors_of, write
from evo_core.checkpoint.scratch import scratch_folder
from evo_core.checkpoint.staging import stage
from evo_core.parallel.collectives import gather_objects
from evo_core.storage.location import Location, is_remote, local_path

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import nn

    from evo_core.checkpoint.run import Run
    from evo_core.checkpoint.staging import Staged
    from evo_core.config import TrainConfig
    from evo_core.data import Prefetch
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.mesh import Mesh
    from evo_core.parallel.process_group import Stop
    from evo_core.train.record import StepRecord
    from evo_core.train.stop_file import StopFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What was asked of a run from outside.

    Attributes:
        stop: a signal told it to stop.
        stop_file: the number in the stop file: n > 0 saves and ends the run at step n (now, if it is past n), n < 0
            saves at step -n and goes on, 0 says nothing.
    """

    stop: bool = False
    stop_file: int = 0


@dataclass(frozen=True)
class Decision:
    """What is to be done after a step.

    Attributes:
        save: write a checkpoint, or a snapshot, of which only the newest two are kept; or nothing.
        end: what ends the run here; None where it goes on, or is at its last step.
    """

    save: Literal["checkpoint", "snapshot"] | None = None
    end: Literal["signal", "stop file"] | None = None


@dataclass(frozen=True)
class Cadence:
    """When a run saves and ends, as a function of the steps done and of what was asked.

    Attributes:
        every: steps between two checkpoints.
        snapshot_every: steps between two snapshots; 1 or less takes none.
        total_steps: the last one is saved too.
        saves: whether the run saves at all.
    """

    every: int | float
    snapshot_every: int | float
    total_steps: int
    saves: bool = True

    @classmethod
    def of(cls, cfg: TrainConfig) -> Cadence:
        """The job's."""
        ckpt = cfg.ckpt
        return cls(ckpt.checkpoint_every, ckpt.oss_snapshot_freq, cfg.data.total_steps, save_folder(cfg) is not None)

    def decide(self, done: int, asked: Asked) -> Decision:
        """What is to be done after `done` steps."""
        end: Literal["signal", "stop file"] | None = None
        if asked.stop:
            end = "signal"
        elif 0 < asked.stop_file <= done:
            end = "stop file"
        if not self.saves:
            return Decision(None, end)
        if end or -asked.stop_file == done or done % self.every == 0 or done == self.total_steps:
            return Decision("checkpoint", end)
        if self.snapshot_every > 1 and done % self.snapshot_every == 0:
            return Decision("snapshot", end)
        return Decision(None, end)


class Checkpointing:
    """What the loop asks about saving: whether to, and to do it. Every rank must make one.

    Args:
        cfg: the job.
        run: whose the checkpoints are.
        mesh: the ranks.
        model, optimizer: what is saved.
        stop: set by a signal to this rank.
        stop_file: the stop file as this rank reads it.
        newest: the checkpoint that the run goes on from; None for a run that begins.

    Attributes:
        newest: the newest complete checkpoint of the run; None where it has none.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        run: Run,
        mesh: Mesh,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        stop: Stop,
        stop_file: StopFile,
        newest: Location | None,
    ) -> None:
        self._cfg, self._run, self._mesh = cfg, run, mesh
        self._model, self._optimizer = model, optimizer
        self._folder, self._cadence = save_folder(cfg), Cadence.of(cfg)
        self._by_way_of = _folder_on_the_way(cfg)
        self._stop, self._stop_file = stop, stop_file
        self._background = BackgroundSaves() if cfg.ckpt.async_upload and self._cadence.saves else None
        self._about = About.of(cfg, mesh.world.size) if self._cadence.saves and mesh.is_log_rank else None
        self.newest = newest
        if self._by_way_of is not None:
            with scratch_folder(self._by_way_of, None):
                pass  # one that cannot be written is found before there is anything to save

    def asked(self) -> Asked:
        """What this rank alone has heard so far."""
        return Asked(self._stop.requested, self._stop_file.read())

    def decide(self, done: int, asked: Asked) -> Decision:
        """What is to be done after `done` steps, given what all ranks together have heard.

        Raises:
            BaseException: the background writing ended on this rank without the others being told: it must end too.
        """
        if self._background is not None:
            self._background.check()
        return self._cadence.decide(done, asked)

    def save(self, state: TrainState, record: StepRecord, batches: Prefetch, *, snapshot: bool) -> None:
        """Write a checkpoint of now, or with ``ckpt.async_upload`` begin to; every rank must call it.

        Where the one before was lost, this one is written and waited for before the run ends with the error of that.

        Args:
            state: where the run is; what optimizer and data know of it is filled in here.
            record: of the last step.
            batches: where the next batch comes from.
            snapshot: write it among the snapshots.

        Raises:
            UserError: it cannot be written, or the one before could not, on every rank.
            RankFailed: the same, where a rank met an error that is no user's mistake.
        """
        began = time.perf_counter()
        lost = self._lost()
        state.moments, state.scaler = self._optimizer.updates, self._optimizer.scaler.state()
        state.data_cursors = data_cursors(batches, self._mesh)
        self._optimizer.settle()
        tensors = tensors_of(self._model, self._optimizer.state())
        now, about = copy.deepcopy(state), self._about and self._about.after(record.fields())
        if self._background is None:
            self.newest = self._written(stage(tensors), None, now, about, snapshot, began)
            return
        self._background.start(tensors, lambda staged, group: self._written(staged, group, now, about, snapshot, began))
        log.info("step %d is being saved; the run waited %.2f s", state.step, time.perf_counter() - began)
        if lost is not None:
            with suppress(Exception):  # the log has it, and the run ends as it is
                self.finish()
            raise lost

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background, if one is; every rank must call it.

        Raises:
            UserError: it could not be written, on every rank.
            RankFailed: the same, where a rank met an error that is no user's mistake.
        """
        if self._background is not None:
            self.newest = self._background.wait() or self.newest

    def _lost(self) -> Exception | None:
        """Wait for the checkpoint that is being written, and return why it is lost if it is."""
        try:
            self.finish()
        except Exception as error:
            if self._background is not None:
                self._background.check()  # where the ranks' threads are out of step, no other can be written
            return error
        return None

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block after whose error the checkpoint that is being written is complete, if it can be.

        An error some steps after a save must not cost the steps before it.
        """
        try:
            yield
        except Exception:
            if self._background is not None:
                self._background.settle()
            raise

    def _written(
        self,
        staged: Staged,
        group: dist.ProcessGroup | None,
        state: TrainState,
        about: About | None,
        snapshot: bool,
        began: float,
    ) -> Location:
        assert self._folder is not None
        folder = write(
            self._folder,
            self._cfg,
            staged,
            state,
            ending=ending_ids_of(self._model),
            snapshot=snapshot,
            run=self._run,
            about=about,
            group=group,
            by_way_of=self._by_way_of,
        )
        log.info("saved %s in %.1f s", folder, time.perf_counter() - began)
        return folder


def data_cursors(batches: Prefetch, mesh: Mesh) -> list[Any]:
    """Where each data-parallel rank goes on in data that are read one after the other; every rank must call it.

    Returns:
        Nothing where the step says where to go on.
    """
    if not batches.sequential:
        return []
    cursors = gather_objects((mesh.data.rank, batches.cursor))
    # Of the ranks that get the same batches, the one that reads them has the cursor.
    found = {rank: cursor for rank, cursor in cursors if cursor is not None}
    return [found[rank] for rank in range(mesh.data.size)]


def save_folder(cfg: TrainConfig) -> Location | None:
    """Where the run saves; None where it saves nothing."""
    folder = cfg.ckpt.save_ckpt_folder
    if not cfg.ckpt.enable_save_ckpt or folder is None:
        return None
    return folder if is_remote(folder) else local_path(folder)


def _folder_on_the_way(cfg: TrainConfig) -> Path | None:
    """Where files of tensors are written before they go to a store; None where they go there at once."""
    folder, on_the_way = save_folder(cfg), cfg.ckpt.async_upload_tmp_folder
    if folder is None or not is_remote(folder) or not cfg.ckpt.async_upload or on_the_way is None:
        return None
    return local_path(on_the_way)

"""What the training loop tells of itself, and who hears of it: people, a monitor, the watchdog."""

from __future__ import annotations

import logging
import math
import secrets
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch.distributed as dist

from evo_core import pulse
from evo_core.errors import UserError
from evo_core.monitor.alerts import Alerts
from evo_core.monitor.diagnosis import Diagnosis
from evo_core.monitor.heartbeat import Heartbeat
from evo_core.monitor.last_words import folder_of
from evo_core.monitor.watchdog import Watchdog
from evo_core.parallel.collectives import RankFailed, broadcast_object, failing_together, gather_objects

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.mesh import Mesh
    from evo_core.parallel.process_group import Ranks
    from evo_core.train.record import StepRecord
    from evo_core.train.timers import Timers

log = logging.getLogger(__name__)

_LINES = 10
"""Lines of a traceback that are told."""


class Monitoring:
    """One per run and rank; every rank calls it alike.

    Attributes:
        attempt: what tells this try of the run from others, alike on every rank.
        hosts: the machine of each rank.
    """

    def __init__(self, cfg: TrainConfig, ranks: Ranks, mesh: Mesh) -> None:
        pulse.count_this_thread()
        self.attempt: str = broadcast_object(secrets.token_hex(4))
        self.hosts: list[str] = gather_objects(socket.gethostname())
        self.alerts = Alerts(cfg, rank=ranks.rank, attempt=self.attempt)
        self._tells, self._world_size = mesh.is_log_rank, ranks.world_size
        self._spike = cfg.monitor.alert.loss_spike
        self._step: int | None = None
        self._skipped = 0
        self._loss: float | None = None
        self._heartbeat = Heartbeat(cfg, beats=mesh.is_log_rank)
        tell = self._tell_slow if mesh.is_log_rank else None
        self._diagnosis = Diagnosis(cfg.data.diag_outlier_ratio, mesh.world, self.hosts, ranks.device, tell)
        self._watchdog = Watchdog(
            cfg.monitor.start_timeout,
            cfg.monitor.stuck_after,
            store=ranks.store(),
            rank=ranks.rank,
            world_size=ranks.world_size,
            tell=self._tell_stuck,
        )

    def keep_in(self, folder: Path) -> None:
        """The run's folder, from where it is known.

        Raises:
            ConfigError: the alert file cannot be written; on every rank.
        """
        with failing_together():
            self.alerts.keep_in(folder)
        self._watchdog.keep_in(folder_of(folder, self.attempt), self.hosts)

    def begins(self, step: int, skipped_updates: int, resumed_from: object | None) -> None:
        """The run is about to do its first step.

        Args:
            resumed_from: the checkpoint of its own that it goes on from; None where it begins.
        """
        self._step, self._skipped = step, skipped_updates
        if self._tells:
            where = f"{self._world_size} ranks on {len(set(self.hosts))} machines"
            if resumed_from is None:
                self.alerts.tell("start", f"the run starts at step {step}, {where}", step=step)
            else:
                self.alerts.tell("restart", f"the run goes on at step {step} from {resumed_from}, {where}", step=step)

    def saw(self, record: StepRecord, timers: Timers | None) -> None:
        """A step is done.

        Args:
            timers: where its time went on this rank; None where nothing was trained on yet.
        """
        if record.measured is not None and timers is not None:
            self._diagnosis.add(timers)
        self._watchdog.started()
        self._step = record.step
        if self._tells:
            self._tell_of(record)

    def at_interval(self, record: StepRecord) -> None:
        """A step is done after which ranks are compared, and its numbers posted to whoever watches over many runs."""
        self._diagnosis.diagnose()
        self._heartbeat.send(record)

    def ended(self, end: Literal["signal", "stop file"] | None, how: str, steps: int, loss: float | None) -> None:
        """The run came to its end, in order.

        Args:
            end: what ended it before its time.
            how: the same in words.
            steps: that are done.
        """
        if self._tells:
            self.alerts.tell(end or "end", f"the run {how} at step {steps}, loss {loss}", step=steps)

    def close(self) -> None:
        """Watch no more, and wait some seconds for what was to be sent."""
        self._watchdog.close()
        self._heartbeat.close()
        self.alerts.close()

    def failed(self, error: Exception) -> None:
        """An error ends this rank. The rank that met it tells; of those that follow from it nobody is told."""
        met: BaseException = error
        if isinstance(error, RankFailed):
            if error.__cause__ is None:
                return
            met = error.__cause__
        if isinstance(met, UserError):
            text = f"the run failed: {type(met).__name__}\n{met}"
        else:
            lines = "".join(traceback.format_exception(met)).splitlines()[-_LINES:]
            where = f"rank {dist.get_rank()} on {socket.gethostname()}"
            text = "\n".join([f"the run failed on {where}: {type(met).__name__}", *lines])
        self.alerts.tell("exception", text, step=self._step, ident="")

    def _tell_of(self, record: StepRecord) -> None:
        measured, step = record.measured, record.step
        if record.skipped_updates > self._skipped:
            self._skipped = record.skipped_updates
            norm = math.nan if measured is None else measured.grad_norm
            self.alerts.tell("overflow", f"step {step} has no update: its gradient norm is {norm}", step=step)
        if measured is None:
            return
        before, self._loss = self._loss, measured.loss
        if not math.isfinite(measured.loss):
            self.alerts.tell("overflow", f"the loss of step {step} is {measured.loss}", step=step)
        elif self._spike and before and before > 0 and measured.loss > self._spike * before:
            text = f"the loss of step {step} is {measured.loss:.4f}, {measured.loss / before:.2f} times the one before"
            self.alerts.tell("loss spike", text, step=step)

    def _tell_slow(self, words: str) -> None:
        self.alerts.tell("slow rank", words, step=self._step)

    def _tell_stuck(self, words: str) -> None:
        self.alerts.tell("stuck", words, step=self._step, ident="")
        self.alerts.close()


@contextmanager
def monitoring(cfg: TrainConfig, ranks: Ranks, mesh: Mesh) -> Iterator[Monitoring]:
    """Watch over a run for the block; every rank must call it."""
    monitor = Monitoring(cfg, ranks, mesh)
    try:
        yield monitor
    except Exception as error:
        monitor.failed(error)
        raise
    finally:
        monitor.close()

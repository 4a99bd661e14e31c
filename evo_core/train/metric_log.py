"""What a run shows and keeps of each step: log line, progress, and the sinks of its curve. One rank does."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from evo_core.job import report_progress
from evo_core.train.record import StepRecord
from evo_core.train.sinks import Sink, open_sinks

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)

_RECENT = 20


class MetricLog:
    """Takes the record of each step.

    Args:
        cfg: the job.
        folder: the run's folder.
        step: the step the run starts at.
        keeps: whether this rank keeps it; on the others every method does nothing.
    """

    def __init__(self, cfg: TrainConfig, folder: Path, step: int, *, keeps: bool) -> None:
        self._keeps, self._total, self._log_every = keeps, cfg.data.total_steps, cfg.data.log_every
        self._sinks: list[Sink] = open_sinks(cfg, folder, step) if keeps else []
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def show(self, record: StepRecord) -> None:
        """Say how a step went as soon as it is done: log line and progress."""
        if not self._keeps:
            return
        done, measured = record.step + 1, record.measured
        if measured is None or record.step % self._log_every == 0 or done == self._total:
            log.info("%s", record.log_line())
        if measured is not None:
            self._seconds.append(measured.seconds)
            usual = sum(self._seconds) / len(self._seconds)
            report_progress(done, self._total, "steps", **record.progress(), eta_seconds=usual * (self._total - done))

    def write(self, record: StepRecord) -> None:
        """Put a record that nothing is added to any more on the curve."""
        if self._sinks:
            fields = record.fields()
            for sink in self._sinks:
                sink.write(fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

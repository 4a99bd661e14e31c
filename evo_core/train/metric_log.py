"""What a run shows and keeps of each step: log line, progress, and the sinks of its curve. One rank does."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from evo_core.job import report_progress
from evo_core.train.record import StepRecord
from evo_core.train.run_log import RunLog
from evo_core.train.sinks import Sink, open_sinks
from evo_core.train.terminal import ProgressLine

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
        lines: the log, above whose end a terminal shows how far the run is.
    """

    def __init__(self, cfg: TrainConfig, folder: Path, step: int, *, keeps: bool, lines: RunLog) -> None:
        self._step, self._lines, self._shown = step, lines, ExitStack()
        self._keeps, self._total, self._log_every = keeps, cfg.data.total_steps, cfg.data.log_every
        self._sinks: list[Sink] = open_sinks(cfg, folder, step) if keeps else []
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._line: ProgressLine | None = None

    def show(self, record: StepRecord) -> None:
        """Say how a step went as soon as it is done: log line and progress."""
        if not self._keeps:
            return
        done, measured = record.step + 1, record.measured
        if measured is None or record.step % self._log_every == 0 or done == self._total:
            log.info("%s", record.log_line())
        if measured is not None:
            self._seconds.append(measured.seconds)
            left = sum(self._seconds) / len(self._seconds) * (self._total - done)
            if self._line is not None:
                self._line.show(done, measured.loss, measured.tokens_per_second, left)
            report_progress(done, self._total, "steps", **record.progress(), eta_seconds=left)

    def write(self, record: StepRecord) -> None:
        """Put a record that nothing is added to any more on the curve."""
        if self._sinks:
            fields = record.fields()
            for sink in self._sinks:
                sink.write(fields)

    def __enter__(self) -> Self:
        self._line = self._shown.enter_context(self._lines.progress_line(self._step, self._total))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()
        for sink in self._sinks:
            sink.close()

"""What a run leaves about its steps: log line, ``metrics.jsonl``, tensorboard, progress. One rank keeps it."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evo_core.job import report_progress
from evo_core.storage.location import local_path
from evo_core.train.metrics import log_line
from evo_core.train.sinks import FILE, MetricsFile, Tensorboard

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
        self._metrics = MetricsFile(folder / FILE, step) if keeps else None
        self._tensorboard = None
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        if keeps and cfg.enable_tb:
            where = local_path(cfg.tensorboard_folder) if cfg.tensorboard_folder else folder / "tensorboard"
            queue = cfg.monitor.tensorboard.queue_max_length
            self._tensorboard = Tensorboard(where, queue=queue, step=step)
            self._tensorboard.text("job_name", cfg.shown.job_name)
            self._tensorboard.text("config", f"```yaml\n{cfg.to_yaml()}\n```")

    def step(self, record: dict[str, Any], *, seconds: float) -> None:
        """Show one step: log line and progress.

        Args:
            record: what was measured; ``step`` counts from 0.
            seconds: what the step took.
        """
        if not self._keeps:
            return
        done = record["step"] + 1
        if record["step"] % self._log_every == 0 or done == self._total:
            log.info("%s", log_line(record))
        self._seconds.append(seconds)
        usual = sum(self._seconds) / len(self._seconds)
        report_progress(
            done,
            self._total,
            "steps",
            loss=record["loss"],
            tokens=record["num_consumed_tokens"],
            tokens_per_second=record["tokens_per_second"],
            eta_seconds=usual * (self._total - done),
        )

    def keep(self, record: dict[str, Any]) -> None:
        """Write a record that nothing is added to any more."""
        if self._metrics is not None:
            self._metrics.write(record)
        if self._tensorboard is not None:
            self._tensorboard.write(record, record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

"""Where the curve of a run goes: ``metrics.jsonl``, one line a step, and the same in tensorboard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evo_core.checkpoint.about import finite
from evo_core.results_folder import check_folder, writing
from evo_core.storage.files import write_file
from evo_core.storage.location import Location, is_remote, local_path
from evo_core.storage.mirror import Mirror
from evo_core.train.earlier_records import copy_records

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

FILE = "metrics.jsonl"


class Sink(Protocol):
    """Takes each step's record once, in order, on the one rank that keeps the curve."""

    def write(self, fields: Mapping[str, Any]) -> None:
        """Take a record as `StepRecord.fields` gives it.

        Raises:
            UserError: it cannot be written.
        """

    def close(self) -> None:
        """Write out what is held back; a record that was refused before is no error here."""


def open_sinks(cfg: TrainConfig, folder: Path, step: int) -> list[Sink]:
    """The sinks that a job asks for.

    Args:
        folder: the run's folder.
        step: the step the run starts at.

    Raises:
        UserError: one cannot be written to.
    """
    sinks: list[Sink] = [MetricsFile(folder / FILE, step)]
    if cfg.enable_tb:
        board = Tensorboard(
            cfg.tensorboard_folder or folder / "tensorboard",
            here=folder / "tensorboard",
            queue=cfg.monitor.tensorboard.queue_max_length,
            step=step,
            before=cfg.resume_tb_folder,
        )
        board.text("job_name", cfg.shown.job_name)
        board.text("config", f"```yaml\n{cfg.to_yaml()}\n```")
        sinks.append(board)
    return sinks


class MetricsFile:
    """Appends one JSON line a step, each on disk before the next step begins.

    Args:
        path: the file.
        step: the step the run starts at. Lines from there on, left by an attempt that came further than its last
            checkpoint, are taken off, so that the file is one curve.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        with writing(path):
            kept = [line for line, number in _steps(path) if number < step]
            write_file(path, "".join(kept))
            self._stream = path.open("a", buffering=1)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append a record; numbers that are not finite become null, which JSON can say."""
        with writing(self._path):
            self._stream.write(json.dumps(finite(fields)) + "\n")

    def close(self) -> None:
        with suppress(OSError):  # of a line that was refused before
            self._stream.close()


def _steps(path: Path) -> list[tuple[str, int]]:
    """Lines with their steps; a last line that a dying process left half-written is dropped."""
    result = []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        try:
            result.append((line, int(json.loads(line)["step"])))
        except (ValueError, KeyError, TypeError):
            continue
    return result


class Tensorboard:
    """Scalars of every step for tensorboard; imported only where it is wanted, for it takes a second.

    Args:
        folder: where event files go.
        here: where they are written if that is in an object store, which gets copies of them as they grow.
        queue: events held back before they are written.
        step: the step the run starts at; what an earlier attempt or run recorded from there on is hidden.
        before: records of an earlier run, which are put beside this one's (``resume_tb_folder``).

    Raises:
        UserError: the folder cannot be written to, or there are no records of an earlier run.
    """

    def __init__(self, folder: Location, *, here: Path, queue: int, step: int, before: Location | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if is_remote(folder):
            check_folder(folder, "tensorboard_folder")
        self._folder = here if is_remote(folder) else local_path(folder)
        if before is not None:
            copy_records(before, self._folder)
        hidden_from = step if step or before is not None else None
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), max_queue=queue, purge_step=hidden_from)
        self._mirror = Mirror(here, str(folder), self._writer.flush) if is_remote(folder) else None

    def text(self, name: str, text: str) -> None:
        """Record a text."""
        with writing(self._folder):
            self._writer.add_text(name, text)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Record every number as a scalar of its name."""
        with writing(self._folder):
            for name, value in fields.items():
                if isinstance(value, int | float) and name not in ("step", "time"):
                    self._writer.add_scalar(name, value, fields["step"])

    def close(self) -> None:
        with suppress(OSError):
            self._writer.close()
        if self._mirror is not None:
            self._mirror.close()

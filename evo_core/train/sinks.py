"""The curve of a run: ``metrics.jsonl``, one line a step, and the same in tensorboard."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from evo_core.results_folder import writing
from evo_core.storage.files import write_file

FILE = "metrics.jsonl"


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

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; numbers that are not finite become null, which JSON can say."""
        with writing(self._path):
            self._stream.write(json.dumps({k: _finite(v) for k, v in record.items()}) + "\n")

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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Tensorboard:
    """Scalars of every step for tensorboard; imported only where it is wanted, for it takes a second.

    Args:
        folder: where event files go.
        queue: events held back before they are written.
        step: the step the run starts at; what an earlier attempt recorded from there on is hidden.
    """

    def __init__(self, folder: Path, *, queue: int, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), max_queue=queue, purge_step=step or None)

    def text(self, name: str, text: str) -> None:
        with writing(self._folder):
            self._writer.add_text(name, text)

    def write(self, record: dict[str, Any], step: int) -> None:
        with writing(self._folder):
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "time"):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with suppress(OSError):
            self._writer.close()

"""Following a job by the files it leaves: its log, its progress and its error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.store.json_file import read_object

NOTE = "[evo] "
"""Begins the lines that the launcher itself writes to a job's log."""

_CHUNK = 1 << 20
_LAST_LINES = 15
_LAST_BYTES = 16384
_MOST_BYTES = 4 << 20


class LogFollower:
    """Hands on the lines of a growing file, from a byte offset on.

    The file is opened anew at every look, so that a network file system shows what another machine has appended.
    `offset` is the end of the last whole line that was handed on: whoever goes on from it repeats and loses nothing.
    """

    def __init__(self, path: Path, offset: int, on_line: Callable[[str], None]) -> None:
        self.path, self.offset, self._on_line = path, offset, on_line

    def poll(self, *, rest: bool = False) -> None:
        """Hand on the lines that were added; with `rest`, also a last one without its newline."""
        if size_of(self.path) <= self.offset:
            return
        with self.path.open("rb") as log:
            log.seek(self.offset)
            pending = b""
            while chunk := log.read(_CHUNK):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self.offset += len(line) + 1
                    self._hand_on(line)
        if rest and pending:
            self.offset += len(pending)
            self._hand_on(pending)

    def _hand_on(self, line: bytes) -> None:
        # a progress bar redraws its line after a carriage return: what a terminal would show is the last one
        self._on_line(line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace"))


def read_progress(state: Path) -> dict[str, Any] | None:
    """The newest progress report of a key: {"done", "total", "unit", ...}; None while none can be read."""
    progress = read_object(state / "progress.json")
    if progress is None:
        return None
    numbers = [progress.get(name) for name in ("done", "total", "loss", "tokens_per_second", "eta_seconds")]
    return progress if all(n is None or type(n) in (int, float) for n in numbers) else None


class ProgressFollower:
    """Hands on ``progress.json`` whenever it has changed."""

    def __init__(self, state: Path, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self._state, self._on_progress = state, on_progress
        self._last: dict[str, Any] | None = None

    def poll(self) -> None:
        """Look once."""
        progress = read_progress(self._state)
        if progress is not None and progress != self._last:
            self._last = progress
            self._on_progress(progress)


def job_error(state: Path) -> tuple[str, bool] | None:
    """The error that the first rank to fail left: its message and whether it is the user's to mend."""
    error = read_object(state / "error.json")
    if error is None:
        return None
    message = str(error.get("message") or "no message")
    if error.get("user_error"):
        return message, True
    rank = error.get("rank")
    where = "" if rank is None else f" (rank {rank} on {error.get('host', 'an unknown host')})"
    return f"{error.get('type', 'Error')}: {message}{where}", False


def failure(log: Path, start: int, how: str) -> str:
    """What to say of a job that left no error: how it ended, and the last lines it printed from `start` on."""
    lines = _last_lines(log, start)
    return f"{how}; the last lines of {log}:\n{lines}" if lines else f"{how}; it printed nothing ({log})"


def _last_lines(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(start, size_of(log) - _LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    own = [line for line in lines if line.strip() and not line.startswith(NOTE)]
    return "\n".join(own[-_LAST_LINES:])


def text_from(log: Path, start: int) -> str:
    """What was printed from byte `start` on; the last megabytes where that is more."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, size_of(log) - _MOST_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def size_of(path: Path) -> int:
    """Bytes in the file; 0 while there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""The line at the bottom of a terminal that says how far a run is. In a file or a pipe there is none."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

_PERIOD = 0.1
"""Seconds between two drawings, however short the steps are; one takes half a millisecond."""


class ProgressLine:
    """Steps, loss, tokens per second and the time that is left, under the lines of the log.

    It is drawn by whoever calls `show`, without a thread, which would take the interpreter from a step. A terminal that
    went away is no error here: the log says so with its next line.

    Args:
        done: steps that are behind the run when it starts.
        total: all of them.
    """

    def __init__(self, done: int, total: int) -> None:
        self._total, self._drawn = total, 0.0
        self._console = _Console(file=sys.stdout)
        self._progress = Progress(
            # One text: where the terminal is narrow the bar gives way, then the end of the text, without the sign for
            # it that not every terminal has.
            TextColumn(
                "step {task.completed}/{task.total}{task.fields[last]}",
                table_column=Column(no_wrap=True, overflow="crop"),
            ),
            BarColumn(bar_width=None),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        self._task = self._progress.add_task("", completed=done, total=total, last="")
        with suppress(OSError):
            self._progress.start()

    def show(self, done: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """So many steps are done; loss and speed are of the last one."""
        now = time.monotonic()
        if now - self._drawn < _PERIOD and done < self._total:
            return
        self._drawn = now
        left = timedelta(seconds=round(seconds_left))
        last = f"  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left} left"
        self._progress.update(self._task, completed=done, last=last)
        with suppress(OSError):
            self._progress.refresh()

    def above(self, text: str) -> None:
        """Print a line of the log, as it is; what the terminal's encoding lacks is escaped.

        Raises:
            OSError: it cannot be written.
        """
        encoding = self._console.encoding
        self._console.out(text.encode(encoding, "backslashreplace").decode(encoding), highlight=False)

    def close(self) -> None:
        """Take the line away."""
        with suppress(OSError):
            self._progress.stop()


class _Console(Console):
    """A console whose cursor stays where it is seen: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def on_terminal() -> bool:
    """Whether stdout is one that a line can be drawn on."""
    return sys.stdout.isatty() and Console(file=sys.stdout).is_interactive

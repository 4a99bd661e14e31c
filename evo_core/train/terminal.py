"""The line at the bottom of a terminal that says how far a run is. In a file or a pipe there is none."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """Steps, loss, tokens per second and the time that is left, under the lines of the log.

    Args:
        done: steps that are behind the run when it starts.
        total: all of them.
    """

    def __init__(self, done: int, total: int) -> None:
        self._console = Console(file=sys.stdout)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        self._task = self._progress.add_task("", completed=done, total=total, loss="-", speed="-")
        self._progress.start()

    def show(self, done: int, loss: float | None, tokens_per_second: float | None) -> None:
        """So many steps are done; what is not known of the last one stays as it was."""
        known: dict[str, Any] = {}
        if loss is not None:
            known["loss"] = f"{loss:.4f}"
        if tokens_per_second is not None:
            known["speed"] = f"{tokens_per_second:,.0f}"
        self._progress.update(self._task, completed=done, **known)

    def above(self, text: str) -> None:
        """Print a line of the log, as it is."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the line away."""
        self._progress.stop()


def on_terminal() -> bool:
    """Whether stdout is one that a line can be drawn on."""
    return sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal

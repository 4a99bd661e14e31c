"""The progress bar of long work on tokens: how far, tokens/s, time left. Drawn on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class _TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0.0
        tokens = task.fields["tokens"]
        return Text(f"{tokens / seconds:,.0f} tokens/s" if seconds and tokens else "")


@contextmanager
def token_bar(what: str) -> Iterator[Callable[[float, int], None]]:
    """Yields the function to call with (share of the work done from 0 to 1, tokens so far)."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda share, tokens: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, _TokensPerSecond(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=1.0, tokens=0)
        yield lambda share, tokens: progress.update(task, completed=share, tokens=tokens)

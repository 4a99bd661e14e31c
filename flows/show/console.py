"""A run in the terminal: the plan, then one live line per running step; plain lines where there is no terminal."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.pipeline.events import ArtifactRef
from flows.pipeline.failures import reason
from flows.pipeline.plan import Plan, PlannedStep
from flows.show import humanize, results, terminal
from flows.show.tables import plan_table
from tasks.launch.launcher import Stopped, launch_runtime
from tasks.store import Artifact

PLAIN_EVERY = 10.0
"""Seconds between two progress lines of a step where lines stay."""

WORTH_SHOWING = re.compile(
    r"tgs \(tokens/gpu/second\)=|^\[evo\] |\b(WARNING|ERROR|CRITICAL)\b"
    r"| -- (auto_resume:|starting from |set, but without effect|evaluation after )"
)
"""Lines of a job's log that are shown: those of training steps, where it starts from, the launcher's notes, and what
is wrong. The rest is in the log file and on Prefect's pages."""


class ConsoleObserver:
    """Shows a run on standard output. A context manager: the live lines end with the block."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal.console()
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[step]}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_plan(self, plan: Plan) -> None:
        self.console.print(plan_table(plan))
        self.console.print(f"[dim]run {escape(plan.run_id)}, store {escape(plan.root)}[/]", soft_wrap=True)

    def on_step_start(self, step: PlannedStep) -> None:
        with self._lock:
            self._started[step.name] = self._said[step.name] = time.monotonic()
            if self.console.is_terminal:
                self._lines[step.name] = self._live.add_task("", step=step.name, total=None)
                return
        self.console.print(f"{step.name}: started", markup=False)

    def on_progress(self, step: PlannedStep, progress: Mapping[str, Any]) -> None:
        line = humanize.progress_line(progress)
        with self._lock:
            if step.name in self._lines:
                total = progress.get("total") or None
                self._live.update(
                    self._lines[step.name], description=line, completed=progress.get("done", 0), total=total
                )
                return
            now = time.monotonic()
            if now - self._said.get(step.name, 0.0) < PLAIN_EVERY:
                return
            self._said[step.name] = now
        self.console.print(f"{step.name}: {line}", markup=False, soft_wrap=True)

    def on_step_end(self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None) -> None:
        with self._lock:
            if (line := self._lines.pop(step.name, None)) is not None:
                self._live.remove_task(line)
            started = self._started.pop(step.name, None)
        if ref is not None and ref.action == "reused":
            return  # the plan said so
        self.console.print(self._end_line(step, ref, error, started), soft_wrap=True)

    def on_message(self, step: PlannedStep | None, line: str) -> None:
        if step is not None and launch_runtime(step.runtime) is not None and not WORTH_SHOWING.search(line):
            return
        if step is not None:
            with self._lock:
                self._said[step.name] = time.monotonic()
        narrow = self.console.is_terminal
        if narrow:  # a training line is wider than most windows: no date, and cut rather than folded
            line = line.rpartition(" -- ")[2]
        text = Text(f"{step.name}: {line}" if step is not None else line, style="dim")
        self.console.print(text, no_wrap=narrow, overflow="ellipsis" if narrow else None, soft_wrap=not narrow)

    def _end_line(
        self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None, started: float | None
    ) -> str:
        took = f" in {humanize.duration(time.monotonic() - started)}" if started is not None else ""
        if ref is not None:
            verb = "made" if ref.action == "made" else "made by another run"
            numbers = results.headline(Artifact(Path(ref.uri)))
            return f"[green]✓[/] [bold]{escape(step.name)}[/] {verb}{took}  {escape(numbers)}"
        if isinstance(error, Stopped):
            return f"[yellow]–[/] [bold]{escape(step.name)}[/] stopped{took}"
        why = reason(error).partition("\n")[0] if error is not None else ""
        return f"[red]✗[/] [bold]{escape(step.name)}[/] failed{took}: {escape(why)}"

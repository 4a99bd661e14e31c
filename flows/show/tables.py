"""Tables for a terminal: a plan, reasons, the state of a store, a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.pipeline.lineage import Ancestor
from flows.pipeline.plan import Plan
from flows.show import terminal
from flows.show.humanize import progress_line
from tasks.raw.listing import RawFile
from tasks.store import Store

COLOURS = {"reuse": "green", "run": "yellow", "attach": "cyan", "damaged": "red"}


def plan_table(plan: Plan) -> Table:
    """Step, kind, key, what will be done, and why."""
    table = Table(
        title=f"{escape(plan.pipeline.name)}: what will be done", title_justify="left", box=None, pad_edge=False
    )
    for column in ("step", "uses", "key", "action", "why"):
        table.add_column(column, overflow="fold" if column == "why" else "ellipsis", no_wrap=column != "why")
    for step in plan.steps:
        action = f"[{COLOURS[step.action]}]{step.action}[/]"
        table.add_row(escape(step.name), escape(step.kind.name), step.key[:12], action, escape(step.why))
    return table


def print_plan(plan: Plan) -> None:
    """The plan, and how many steps would run."""
    console = terminal.console()
    console.print(plan_table(plan))
    to_run = sum(step.action != "reuse" for step in plan.steps)
    console.print(f"{to_run} of {len(plan.steps)} steps to do; store: {escape(plan.root)}")


def print_reasons(reasons: Sequence[dict[str, Any]]) -> None:
    """Why a step runs, and the steps before it that run too."""
    console = terminal.console()
    for entry in reasons:
        console.print(
            f"[bold]{escape(entry['step'])}[/] {entry['key'][:12]}: {entry['action']} ({escape(entry['why'])})"
        )
        if entry["nearest"]:
            console.print(f"  compared with {escape(entry['nearest'])}:")
        for change in entry["differences"]:
            console.print(f"    {escape(change)}")


def print_status(
    store: Store, live: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], damaged: Sequence[dict[str, str]]
) -> None:
    """What is being made, what is damaged, and the newest runs."""
    console = terminal.console()
    console.print(f"store: {escape(str(store.root))}")
    if not live:
        console.print("nothing is being made")
    for entry in live:
        who = f"job {entry['job']}" if entry["job"] else f"process {entry['process']}"
        making = f"by {who}: {progress_text(entry['progress'])}"
        console.print(f"[yellow]{escape(entry['step'])}[/] {entry['key'][:12]} {escape(making)}")
    for entry in damaged:
        console.print(f"[red]damaged[/] {escape(entry['folder'])}: {escape(entry['why'])}", soft_wrap=True)
    if runs:
        table = Table(title="last runs", title_justify="left", box=None, pad_edge=False)
        for column in ("run", "pipeline", "steps made", "missing"):
            table.add_column(column)
        for run in reversed(runs):
            made = sum(step["made"] for step in run["steps"])
            missing = ", ".join(step["step"] for step in run["steps"] if not step["made"])
            table.add_row(escape(run["run"]), escape(run["file"]), f"{made}/{len(run['steps'])}", escape(missing))
        console.print(table)


def progress_text(progress: dict[str, Any] | None) -> str:
    """``120/300 steps · loss 3.410 · 4102 tokens/s · 1m 5s left``."""
    return progress_line(progress) if progress else "no progress reported yet"


def print_trace(
    sample: dict[str, Any] | None, lineage: Sequence[Ancestor], files: Sequence[RawFile], *, every_file: bool
) -> None:
    """The way back: each artifact with what it was made by, then the raw files."""
    console = terminal.console()
    if sample is not None:
        console.print(f"[bold]{escape(sample['prompt'])}[/]{escape(sample['text'])}")
    for ancestor in lineage:
        record = ancestor.record()
        indent = "  " * ancestor.depth
        role = f"{escape(ancestor.role)}: " if ancestor.role else ""
        console.print(f"{indent}{role}[bold]{escape(record['step'])}-{record['key'][:12]}[/]  {escape(record['kind'])}")
        console.print(f"{indent}  {escape(_numbers(record['statistics']))}", soft_wrap=True)
        git = record["git"]
        commit = f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}, " if git else ""
        console.print(f"{indent}  {commit}{record['started']} on {escape(str(record['host']))}", soft_wrap=True)
        console.print(f"{indent}  {escape(record['uri'])}", soft_wrap=True)
    counts = Counter(file.path.partition("/")[0] for file in files)
    total = sum(file.size for file in files)
    console.print(
        f"raw files: {len(files)} ({total:,} bytes): {escape(', '.join(f'{t} {n}' for t, n in counts.items()))}"
    )
    for file in files if every_file else files[:5]:
        console.print(f"  {file.digest[:12]}  {file.size:>12,}  {escape(file.uri)}", soft_wrap=True)
    if not every_file and len(files) > 5:
        console.print("  … all of them with --files")


def _numbers(statistics: dict[str, Any]) -> str:
    """The plain numbers among an artifact's statistics."""
    plain = {k: v for k, v in statistics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in plain.items()) or "-"

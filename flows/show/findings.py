"""What the doctor found, in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape

from flows.doctor.finding import Finding
from flows.show import terminal

MARKS = {"ok": "[green]✓[/]", "not here": "[dim]–[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


def print_findings(findings: Sequence[Finding]) -> None:
    """A line each, with what to do below it, and how many there are that need somebody."""
    console = terminal.console()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        said = "" if finding.verdict == "ok" else f"{finding.verdict}: "
        subject = escape(f"{finding.subject:<{width}}")
        console.print(f"{MARKS[finding.verdict]} {subject}  {said}{escape(finding.message)}", soft_wrap=True)
        if finding.hint and finding.verdict != "ok":
            console.print(f"  {'':<{width}}  → {escape(finding.hint)}", soft_wrap=True)
    count = Counter(finding.verdict for finding in findings)
    console.print(f"{_plural(count['problem'], 'problem')}, {_plural(count['warning'], 'warning')}")


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

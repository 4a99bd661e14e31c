"""What every benchmark comes to: one list of rows, whatever it measures, and the page that is made of them.

A benchmark's module has a function ``rows(figures)`` that makes them of what ``--json`` writes, so that one that fails
half way leaves the rows that it knew; or its JSON is such a list itself, or has one under "rows". A module may have
``QUICK``, the arguments that show in seconds that it runs, and ``plot(figures, folder)``, which draws its pictures and
returns their paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

REACHED, MISSED = "reached", "MISSED"


@dataclass(frozen=True)
class Row:
    """One figure, alone or beside a peer's.

    Attributes:
        benchmark: the module's name.
        row: what was measured, in its own words.
        value: ours, in `unit`.
        peer, peer_value: who else did the same, and theirs.
        ratio: how many times as good as the peer's ours is; below 1 it is worse.
        bar: what the ratio, or without one the value, has to come to.
        verdict: `REACHED` or `MISSED`; None without a bar.
        note: what else has to be known.
    """

    benchmark: str
    row: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    bar: float | None = None
    verdict: str | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)


def judged(
    benchmark: str,
    row: str,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    bar: float | None = None,
    less_is_better: bool = False,
    at_most: bool = False,
    note: str = "",
) -> Row:
    """A row with its ratio and verdict.

    Args:
        ratio: where it is not the one of the two values (a median of ratios).
        bar: for the ratio, or without one for the value.
        less_is_better: of values: the ratio is then the peer's over ours.
        at_most: the bar is a limit that must not be passed.
    """
    if ratio is None and peer_value is not None and value and peer_value:
        ratio = peer_value / value if less_is_better else value / peer_value
    verdict = None
    if bar is not None:
        judge = value if ratio is None else ratio
        verdict = REACHED if (judge <= bar if at_most else judge >= bar) else MISSED
    return Row(benchmark, row, value, unit, peer, peer_value, ratio, bar, verdict, note)


def output_file(text: str) -> Path:
    """An argument that names a file to write: whether it can be written is said before the work, not after it.

    Its folder is made.

    Raises:
        ArgumentTypeError: it cannot.
    """
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_there = path.exists()
        path.open("a").close()
        if not is_there:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error.strerror})") from None
    return path


def read_rows(figures: Any, make: Callable[[Any], Iterable[Row]] | None) -> list[Row]:
    """The rows of what a benchmark wrote.

    Args:
        figures: its JSON.
        make: the module's ``rows``, if it has one.

    Raises:
        ValueError: there are none to be found in it.
    """
    if make is not None:
        return list(make(figures))
    listed = figures.get("rows") if isinstance(figures, dict) else figures
    known = {field.name for field in fields(Row)}
    if not isinstance(listed, list) or not all(isinstance(each, dict) and known >= each.keys() for each in listed):
        raise ValueError("its JSON has no rows, and its module no function that makes them")
    return [Row(**each) for each in listed]


# --- the page


@dataclass
class Outcome:
    """What became of one benchmark.

    Attributes:
        about: what it measures, a sentence.
        command: as it was run.
        printed: its lines.
        failed: why it did not end well; None where it did.
        pictures: beside the page.
    """

    name: str
    about: str
    command: str
    seconds: float
    printed: list[str]
    rows: list[Row]
    failed: str | None = None
    pictures: Sequence[Path] = ()

    @property
    def left_out(self) -> list[str]:
        """Its own words on what it did not do."""
        return [line.strip() for line in self.printed if "left out" in line]


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many bars, and which are missed, in a line."""
    barred = [row for outcome in outcomes for row in outcome.rows if row.verdict is not None]
    missed = [f"{row.benchmark}: {row.row}{f' beside {row.peer}' if row.peer else ''}" for row in barred
              if row.verdict == MISSED]  # fmt: skip
    line = f"{len(barred) - len(missed)} of {len(barred)} bars reached"
    return f"{line}; missed: {'; '.join(missed)}" if missed else line


def page(
    outcomes: Sequence[Outcome],
    machine: dict[str, str],
    missing: Sequence[str],
    pictures: Sequence[Path],
    folder: Path,
    *,
    quick: bool,
) -> str:
    """The whole page.

    Args:
        machine: what is said of machine, versions, date and commit, by what it is.
        missing: lines on what is not there: a peer that could not be installed, a benchmark that was not run.
        pictures: of all benchmarks.
        folder: where the page will lie: pictures are named from there.
    """
    return "\n".join([*_head(outcomes, machine, pictures, folder, quick), *_bodies(outcomes, folder),
                      *_left_out(outcomes, missing)]) + "\n"  # fmt: skip


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Rows as a table in Markdown."""
    yield "| row | Evo | beside | theirs | ratio | bar | | |"
    yield "|---|---:|---|---:|---:|---:|---|---|"
    for row in rows:
        cells = (
            row.row, f"{number(row.value)} {row.unit}", row.peer or "", number(row.peer_value),
            "" if row.ratio is None else f"{row.ratio:.2f}", "" if row.bar is None else f"{row.bar:g}",
            f"**{row.verdict}**" if row.verdict == MISSED else row.verdict or "", row.note,
        )  # fmt: skip
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def number(value: float | None) -> str:
    """To three digits or more; below 0.0001 with an exponent, as ``3.00e-07``."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.2e}"


def _head(
    outcomes: Sequence[Outcome], machine: dict[str, str], pictures: Sequence[Path], folder: Path, quick: bool
) -> Iterator[str]:
    yield "# Results\n"
    yield "One run of `make bench`: Evo beside its peers on one machine. docs/benchmarks.md says how to read it.\n"
    if quick:
        yield "**With `--quick`: it shows that everything runs; its figures say nothing.**\n"
    yield "| | |"
    yield "|---|---|"
    for what, value in machine.items():
        yield f"| {what} | {value.replace('|', '/')} |"
    yield f"\n{summary(outcomes)}.\n"
    yield from (f"![{path.stem}]({path.relative_to(folder)})\n" for path in pictures)


def _bodies(outcomes: Sequence[Outcome], folder: Path) -> Iterator[str]:
    for outcome in outcomes:
        yield f"## {outcome.name}\n"
        yield f"{outcome.about} `{outcome.command}`, {outcome.seconds:,.0f} s.\n"
        if outcome.failed is not None:
            yield f"**It failed: {outcome.failed}**\n"
        if outcome.rows:
            yield from (*table(outcome.rows), "")
        yield from (f"![{path.stem}]({path.relative_to(folder)})\n" for path in outcome.pictures)
        if outcome.printed:
            yield "<details><summary>As it was printed</summary>\n\n```text"
            yield from outcome.printed
            yield "```\n\n</details>\n"


def _left_out(outcomes: Sequence[Outcome], missing: Sequence[str]) -> Iterator[str]:
    lines = [*missing]
    for outcome in outcomes:
        lines += [f"{outcome.name}: {line}" for line in outcome.left_out]
        lines += [f"{outcome.name} failed: {outcome.failed}"] if outcome.failed is not None else []
    yield "## What was left out\n"
    yield from (f"- {line}" for line in lines)
    if not lines:
        yield "Nothing."

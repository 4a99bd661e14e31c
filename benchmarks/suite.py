"""Every benchmark in turn, and one page of what they found: ``python -m benchmarks.suite [NAME...]``.

Each runs as a process of its own; its lines are shown as they come, and its figures become rows (results.py). One that
fails is said in one line, and the rest runs. All of them write ``benchmarks/RESULTS.md`` and the pictures in
``benchmarks/results``; some of them, or ``--quick``, write the same below ``.bench``, so that the page is always of one
run. Ctrl-C, or SIGTERM, ends the benchmark under way and the suite; what is known by then is on the page.

Exit status: 0, also where bars are missed, which the last line says; 1 if a benchmark failed or is not there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import machine, peers, plots, processes
from benchmarks.results import Outcome, Row, output_file, page, read_rows, summary

ROOT = Path(__file__).parents[1]
ALL = (
    "train_step", "generate", "learning", "order", "startup", "data", "loader", "refresh", "checkpoint", "parallel",
    "optimizer", "alerts", "engine", "estimate",
)  # fmt: skip
"""In the order in which they run: what is asked about most comes first."""

TIMEOUT = 3600.0
"""Seconds that one benchmark may take."""


def run_benchmark(name: str, figures: Path, *, quick: bool, timeout: float = TIMEOUT) -> Outcome:
    """Run one, show its lines, and read its figures.

    Args:
        figures: where it writes its JSON.
    """
    began, printed = time.monotonic(), list[str]()
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except Exception as error:  # whatever hinders it hinders it alone
        why = f"it cannot be imported: {_line(error)}"
        return Outcome(name, "", f"python -m benchmarks.{name}", 0.0, printed, [], why)
    words = ["-m", f"benchmarks.{name}", *(getattr(module, "QUICK", ()) if quick else ())]
    command = f"python {' '.join(words)}"
    print(f"\n== {command}", flush=True)
    figures.unlink(missing_ok=True)
    failed = _run([sys.executable, *words, "--json", str(figures)], printed, timeout)
    outcome = Outcome(name, _about(module), command, time.monotonic() - began, printed, [], failed)
    try:
        outcome.rows = _rows(module, figures)
    except Exception as error:
        outcome.failed = failed or f"its figures are not understood: {_line(error)}"
    if outcome.failed is not None:
        print(f"{name} failed: {outcome.failed}", flush=True)
    return outcome


def _run(command: Sequence[str], printed: list[str], timeout: float) -> str | None:
    """Run a command and show all that it says; what it prints is kept. Returns why it did not end well, or None."""
    complaints, late = deque[str](maxlen=100), threading.Event()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with processes.started(command, env=peers.environment(), **pipes) as process:

        def end() -> None:
            late.set()
            processes.end(process)

        timer = threading.Timer(timeout, end)
        listener = threading.Thread(target=_show, args=(process.stderr, complaints.append), daemon=True)
        timer.start()
        listener.start()
        try:
            _show(process.stdout, printed.append)
            status = process.wait()
            listener.join(10)  # a process that it left behind may keep this open
        finally:
            timer.cancel()
    if late.is_set():
        return f"it took longer than {timeout:g} s and was ended"
    if status == 0:
        return None
    said = [line for line in (*printed, *complaints) if line.strip()]
    return f"status {status}: {said[-1].strip() if said else 'it said nothing'}"


def _show(stream: Any, keep: Callable[[str], object]) -> None:
    for line in stream:
        keep(line.rstrip("\n"))
        print(line, end="", flush=True)


def _rows(module: ModuleType, figures: Path) -> list[Row]:
    if not figures.exists():
        return []
    return read_rows(json.loads(figures.read_bytes()), getattr(module, "rows", None))


def _about(module: ModuleType) -> str:
    """The first sentence of its docstring, without the command behind it."""
    first = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
    return f"{first.partition(': ``')[0].rstrip('.')}."


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# --- pictures and the page


def draw(outcomes: Iterable[Outcome], figures: Path, folder: Path) -> list[Path]:
    """The picture of all ratios; each benchmark's own are noted with it. What cannot be drawn is said in a line."""
    outcomes = list(outcomes)
    try:
        every = plots.ratios([row for outcome in outcomes for row in outcome.rows], folder / "ratios.svg")
        for outcome in outcomes:
            outcome.pictures = _own_pictures(outcome.name, figures / f"{outcome.name}.json", folder)
    except Exception as error:
        print(f"pictures are left out: {_line(error)}")
        return []
    return [] if every is None else [every]


def _own_pictures(name: str, figures: Path, folder: Path) -> list[Path]:
    plot: Any = getattr(sys.modules.get(f"benchmarks.{name}"), "plot", None)
    if plot is None or not figures.exists():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return list(plot(json.loads(figures.read_bytes()), folder))


def main() -> None:
    """Run them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(ALL)} (all)")
    parser.add_argument("--quick", action="store_true", help="few and small rows, which show that everything runs")
    parser.add_argument("--install", action="store_true", help="bring the peers first, by pip")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"seconds of one benchmark ({TIMEOUT:g})")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="the page; pictures go to results/ beside it"
    )
    arguments = parser.parse_args()
    processes.sigterm_is_ctrl_c()
    names: tuple[str, ...] = tuple(dict.fromkeys(arguments.names)) or ALL
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    whole = set(names) == set(ALL) and not arguments.quick
    target: Path = arguments.output or (ROOT / "benchmarks" if whole else peers.APART) / "RESULTS.md"
    missing = peers.install() if arguments.install else []
    for line in missing:
        print(line, flush=True)
    outcomes = run_all(names, target, missing, quick=arguments.quick, timeout=arguments.timeout)
    if outcomes:
        print(f"\n{summary(outcomes)}\n{target}")
    sys.exit(any(outcome.failed is not None for outcome in outcomes) or len(outcomes) < len(names))


def run_all(
    names: Sequence[str], target: Path, missing: Sequence[str] = (), *, quick: bool = False, timeout: float = TIMEOUT
) -> list[Outcome]:
    """Run these, and write the page after each of them; those that were run, if Ctrl-C ends it.

    Args:
        target: the page. Figures are kept in ``figures`` beside the pictures, which are in ``results`` beside it.
        missing: lines on what is not there: a peer that could not be installed.
    """
    sys.path.insert(0, str(peers.APART))  # versions of what lies there are said too
    found, outcomes = machine.describe(), list[Outcome]()
    figures = peers.APART / "figures"
    for folder in (figures, target.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            outcomes.append(run_benchmark(name, figures / f"{name}.json", quick=quick, timeout=timeout))
        except KeyboardInterrupt:
            print(f"\nended in {name}; the rest is left out")
            break
        pictures = draw(outcomes, figures, target.parent / "results")
        left = [f"not run: {', '.join(rest)}"] if (rest := names[len(outcomes) :]) else []
        text = page(outcomes, found, [*missing, *left], pictures, target.parent, quick=quick)
        target.write_text(text, encoding="utf-8")
    return outcomes


if __name__ == "__main__":
    main()

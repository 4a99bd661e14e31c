"""The suite: rows and verdicts, the page, benchmarks that fail or hang, peers that cannot be had."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import benchmarks
from benchmarks import machine, peers, plots, processes, suite
from benchmarks.results import (
    MISSED,
    REACHED,
    Outcome,
    Row,
    judged,
    number,
    output_file,
    page,
    read_rows,
    summary,
    table,
)
from evo_core.process import start_time

FASTER = judged("speed", "dense", 200.0, "tokens/s", peer="them", peer_value=160.0, bar=1.2)
SLOWER = judged("speed", "start", 4.0, "s", peer="them", peer_value=2.0, less_is_better=True, bar=0.9)
LIMIT = judged("speed", "waits for", 0.12, "of a save", bar=0.1, at_most=True)


def test_ratio_and_verdict() -> None:
    assert (FASTER.ratio, FASTER.verdict) == (1.25, REACHED)
    assert (SLOWER.ratio, SLOWER.verdict) == (0.5, MISSED)
    assert (LIMIT.ratio, LIMIT.verdict) == (None, MISSED)
    assert judged("b", "r", 1.0, "s").verdict is None
    assert judged("b", "r", 1.0, "s", peer="p", peer_value=2.0, ratio=1.5).ratio == 1.5


def test_numbers() -> None:
    texts = {None: "", 0.0: "0", 1234567.8: "1,234,568", 12.345: "12.3", 0.0123: "0.0123", 3e-7: "3.00e-07"}
    assert {value: number(value) for value in texts} == texts


def test_rows_are_made_by_the_module_or_are_in_its_json() -> None:
    listed = json.loads(json.dumps([FASTER.as_json(), LIMIT.as_json()]))
    assert read_rows(listed, None) == read_rows({"rows": listed, "more": 1}, None) == [FASTER, LIMIT]
    assert read_rows({"speed": 3.0}, lambda figures: [judged("b", "r", figures["speed"], "s")])[0].value == 3.0
    for other in ({"speed": 3.0}, {"rows": [{"speed": 3.0}]}):
        with pytest.raises(ValueError, match="has no rows, and its module no function that makes them"):
            read_rows(other, None)


def test_the_page_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    said = ["torch 2", "litgpt is left out (no module)"]
    good = Outcome("speed", "How fast.", "python -m x", 3.2, said, [FASTER, SLOWER])
    bad = Outcome("size", "How large.", "python -m y", 1.0, [], [], failed="status 1: no disk")
    picture = tmp_path / "results" / "ratios.svg"
    text = page([good, bad], {"CPU": "a | b"}, ["datatrove could not be installed"], [picture], tmp_path, quick=True)
    for line in (
        "| CPU | a / b |",
        "1 of 2 bars reached; missed: speed: start beside them.",
        "![ratios](results/ratios.svg)",
        "| dense | 200 tokens/s | them | 160 | 1.25 | 1.2 | reached |  |",
        "| start | 4 s | them | 2 | 0.50 | 0.9 | **MISSED** |  |",
        "**It failed: status 1: no disk**",
        "- datatrove could not be installed",
        "- speed: litgpt is left out (no module)",
        "- size failed: status 1: no disk",
    ):
        assert line in text.splitlines()
    assert "With `--quick`" in text
    assert summary([good]) == "1 of 2 bars reached; missed: speed: start beside them"
    assert len(list(table([FASTER]))) == 3


def test_a_benchmark_that_fails_says_why_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(code: str, timeout: float = 60) -> tuple[str | None, list[str]]:
        printed: list[str] = []
        return suite._run([sys.executable, "-c", code], printed, timeout), printed

    assert run("print('a row')") == (None, ["a row"])
    assert run("print('a row'); raise SystemExit('losses differ: void')") == (
        "status 1: losses differ: void",
        ["a row"],
    )
    assert run("import sys; sys.exit(3)")[0] == "status 3: it said nothing"
    assert run("import time; time.sleep(60)", timeout=1)[0] == "it took longer than 1 s and was ended"
    assert "losses differ: void" in capsys.readouterr().out


def is_gone(pid: int) -> bool:
    """Whether a process is killed soon; its parent may not have waited for it."""
    for _ in range(100):
        if start_time(pid) is None:
            return True
        time.sleep(0.05)
    return False


WITH_A_CHILD = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "600"]).pid, file=open(sys.argv[1], "w", buffering=1), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("sleeps", "ends"), [("600", None), ("0", 0)])
def test_what_a_program_started_ends_with_it(tmp_path: Path, sleeps: str, ends: int | None) -> None:
    command = [sys.executable, "-c", WITH_A_CHILD, str(tmp_path / "pid"), sleeps]
    assert processes.run(command, 10 if ends is None else 60) == ends
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_a_program_ends_what_it_started(tmp_path: Path, by: signal.Signals) -> None:
    code = """
import sys
from benchmarks import processes
processes.sigterm_is_ctrl_c()
processes.run([sys.executable, "-c", *sys.argv[1:]], 600)
"""
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", code, WITH_A_CHILD, str(pid), "600"]
    with subprocess.Popen(command, cwd=suite.ROOT, stderr=subprocess.DEVNULL) as process:
        while not pid.exists() or not pid.read_text().strip():
            time.sleep(0.05)
        process.send_signal(by)
    assert is_gone(int(pid.read_text()))


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    assert output_file(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("kept")
    assert output_file(str(tmp_path / "file")).read_text() == "kept"
    assert output_file("/dev/null") == Path("/dev/null")
    for cannot in (tmp_path / "file" / "a.json", tmp_path / "new"):
        with pytest.raises(argparse.ArgumentTypeError, match="cannot be written"):
            output_file(str(cannot))
    for path in (suite.ROOT / "benchmarks").glob("*.py"):
        assert '"--json", type=Path' not in path.read_text(encoding="utf-8"), path


def test_what_cannot_be_imported_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = suite.run_benchmark("no_such", tmp_path / "figures.json", quick=True)
    assert outcome.failed == "it cannot be imported: ModuleNotFoundError: No module named 'benchmarks.no_such'"


def test_the_page_of_a_suite_that_was_ended_says_what_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ended_by_ctrl_c.py").write_text("raise KeyboardInterrupt")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    outcomes = suite.run_all(["no_such", "ended_by_ctrl_c", "loader"], tmp_path / "RESULTS.md", quick=True)
    assert [outcome.name for outcome in outcomes] == ["no_such"]
    assert "- not run: ended_by_ctrl_c, loader" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()


def test_every_benchmark_of_the_suite_has_rows_and_a_quick_way() -> None:
    folder = suite.ROOT / "benchmarks"
    for name in suite.ALL:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert "def rows(" in text and '"--json"' in text, name
        assert "QUICK = (" in text or name == "estimate", name


def test_peers_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "APART", tmp_path)
    asked: list[Sequence[str]] = []

    def pip(words: Sequence[str]) -> str | None:
        asked.append(words)
        return "No matching distribution" if any("datatrove" in word for word in words) else None

    lines = peers.install(pip)
    assert len(lines) == 1
    assert lines[0].startswith("datatrove") and lines[0].endswith(
        "could not be installed and is left out: No matching distribution"
    )
    # All at once, then each by itself, then litgpt apart and without what it asks for.
    assert len(asked) == 2 + len(peers.bench_extra())
    assert "--no-deps" in asked[-1] and "litgpt" in asked[-1] and str(tmp_path) in asked[-1]
    (tmp_path / "torchmetrics").mkdir()
    assert peers.install(lambda words: None) == []


def test_pictures(tmp_path: Path) -> None:
    path = plots.ratios([FASTER, SLOWER, LIMIT, Row("b", "r", 1.0, "s")], tmp_path / "results" / "ratios.svg")
    assert path is not None and path.read_text(encoding="utf-8").count("MISSED") == 0 and path.stat().st_size > 2000
    first = path.read_bytes()
    plots.ratios([FASTER, SLOWER], path)
    plots.ratios([FASTER, SLOWER, LIMIT], path)
    assert path.read_bytes() == first  # the same figures are the same file
    assert plots.ratios([LIMIT], tmp_path / "none.svg") is None
    strange = [judged("b", "r", value, "s", peer="p", peer_value=2.0, bar=1.0) for value in (math.nan, math.inf, -1.0)]
    assert plots.ratios(strange, tmp_path / "none.svg") is None
    plots.ratios([FASTER, *strange, SLOWER], path)
    assert path.read_bytes() == first  # what is no ratio stands on the page, and spoils no picture
    assert plots.curves({"en": [(0, 5.0), (1, 4.0)]}, tmp_path / "c.svg", x="seconds", y="loss").exists()


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert {"CPU", "cores", "system", "Python", "packages", "date"} <= found.keys()
    assert "torch " in found["packages"] and found["date"].endswith("UTC")


@pytest.mark.slow
def test_a_run_writes_its_page(tmp_path: Path) -> None:
    outcomes = suite.run_all(["loader"], tmp_path / "RESULTS.md", quick=True)
    assert outcomes[0].failed is None and len(outcomes[0].rows) == 17
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## loader" in text and "| mapped 2048 x 2 |" in text and text.rstrip().endswith("Nothing.")

"""A run in the terminal."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from flows.pipeline.engine import run_plan
from flows.show.console import WORTH_SHOWING, ConsoleObserver
from flows.show.observers import Observers
from tasks.launch.launcher import LaunchRuntime, Stopped
from tests.flows.orchestration.small import Small


def run(small: Small, *overrides: str, terminal: bool = False) -> str:
    """What the console shows of a run."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, color_system=None)
    with ConsoleObserver(console) as observer:
        try:
            run_plan(small.plan(*overrides), small.store, Observers(observer), threading.Event())
        except Exception:
            pass
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal(small: Small) -> None:
    text = run(small)
    assert "model    test.curve" in text and "never made before" in text
    assert "model: started\n" in text
    assert "✓ model made in" in text and "steps 60 · tokens 30.7k · loss" in text
    assert "cn loss 4.000 · en loss 4.100 · code loss 4.200" in text
    assert "\x1b" not in text


def test_a_whole_training_line_is_shown(small: Small) -> None:
    line = "tflops=0.1,step=10,loss="
    assert any(shown.startswith(f"model: {line}") and shown.endswith("lr=0.001") for shown in run(small).splitlines())


def test_reused_steps_are_shown_in_the_plan_only(small: Small) -> None:
    run(small)
    text = run(small)
    assert text.count("there already") == 5
    assert "made in" not in text and "started" not in text


def test_live_lines_in_a_terminal_leave_only_results(small: Small) -> None:
    text = run(small, "vars.seconds=0.3", terminal=True)
    assert "✓ model made in" in text
    assert "60/60 steps" in text or "/60 steps" in text
    assert "model: started" not in text


def test_a_failed_step_is_said_with_its_error(small: Small) -> None:
    assert re.search(r"✗ model failed in \d\.\ds: the loss is not a number", run(small, "vars.fail=true"))


def test_a_stopped_step_is_no_failure(small: Small) -> None:
    out = io.StringIO()
    observer = ConsoleObserver(Console(file=out, width=100))
    step = small.plan().step("model")
    observer.on_step_start(step)
    observer.on_step_end(step, None, Stopped("told to"))
    assert "model stopped" in out.getvalue() and "failed" not in out.getvalue()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("2026-11-24 04:00:00,1\tINFO journal.py:5 in step -- tflops=1,step=3,tgs (tokens/gpu/second)=4.0", True),
        ("2026-11-24 04:00:00,1\tINFO startup.py:5 in say -- set, but without effect here: use_shm", True),
        ("[evo] restarted after a lost node; restart 1 of 3", True),
        ("2026-11-24 04:00:00,1\tWARNING folder.py:61 in newest -- checkpoint 7 is incomplete", True),
        ("2026-11-24 04:00:00,1\tINFO loop.py:187 in save -- saved /x/5 in 0.1 s", False),
        ("some library says hello", False),
    ],
)
def test_of_a_jobs_log_only_what_is_worth_it_is_shown(small: Small, line: str, shown: bool) -> None:
    assert bool(WORTH_SHOWING.search(line)) is shown
    out = io.StringIO()
    observer = ConsoleObserver(Console(file=out, width=300))
    launched = replace(small.plan().step("model"), runtime=LaunchRuntime())
    observer.on_message(launched, line)
    assert (line.partition(",")[0] in out.getvalue()) is shown

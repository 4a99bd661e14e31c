"""A closed terminal, an impatient person, and code that takes its own way out: with a Prefect server and without."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.flows.orchestration.conftest import Api, evo, processes_with, read_until, settled, start
from tests.flows.orchestration.small import Small

DEAF = """\
pipeline: deaf
steps:
  a:
    uses: tests.flows.pipeline.kinds:Deaf
    runtime: {seconds: 100}
"""
EXITS = """\
pipeline: exits
steps:
  a: {uses: "tests.flows.pipeline.kinds:End", params: {how: exits with 0}}
"""
WITH_AND_WITHOUT = pytest.mark.parametrize(
    "flags", [["--no-server"], pytest.param([], marks=pytest.mark.ui)], ids=["no server", "server"]
)


@pytest.mark.faults
@WITH_AND_WITHOUT
def test_a_second_ctrl_c_ends_everything_at_once_whatever_a_step_does(
    tmp_path: Path, environment: dict[str, str], flags: list[str]
) -> None:
    (tmp_path / "deaf.yaml").write_text(DEAF)
    words = ["run", str(tmp_path / "deaf.yaml"), "--root", str(tmp_path / "store"), *flags]
    running = start("evo", *words, environment=environment)
    read_until(running, "a: it sleeps")
    running.send_signal(signal.SIGINT)
    read_until(running, "Ctrl-C again")  # two that come together are one
    assert running.poll() is None, "the first Ctrl-C waits for the step"
    told = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130, out
    assert time.monotonic() - told < 30  # the step would sleep on for minutes
    assert "ended at once" in out and "Traceback" not in out
    assert not settled(lambda: processes_with(str(tmp_path)), lambda left: not left, 5)


@pytest.mark.faults
@pytest.mark.slow
def test_other_signals_said_twice_are_one_request(small: Small, environment: dict[str, str]) -> None:
    words = ["run", str(small.file), "--root", str(small.root), "--no-server", "--set", "vars.seconds=100"]
    running = start("evo", *words, environment=environment)
    read_until(running, "model: tflops")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        running.send_signal(number)
        read_until(running, "stopping")  # of signals that wait together Python sees the lowest first
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 143, out
    assert "ended at once" not in out


@pytest.mark.faults
def test_a_closed_terminal_stops_the_run_in_order(small: Small, environment: dict[str, str]) -> None:
    words = ["run", str(small.file), "--root", str(small.root), "--no-server", "--set"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "flows.cli", *words, "vars.seconds=100"], environment)
    seen = b""
    while b"steps" not in seen:  # of the model's progress
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129, seen.decode()
    left = list(small.root.glob("artifacts/*/attempts/*/"))
    assert all((folder / "attempt.json").exists() for folder in left)
    assert not list(small.root.glob("state/*/claim.json"))
    assert evo(*words, "vars.seconds=0", environment=environment).returncode == 0


@pytest.mark.faults
@pytest.mark.slow
def test_nohup_is_respected(small: Small, environment: dict[str, str]) -> None:
    words = ["run", str(small.file), "--root", str(small.root), "--no-server", "--set", "vars.seconds=2"]
    script = f'trap "" HUP; exec {sys.executable} -m flows.cli "$@"'
    running = start("/bin/sh", "-c", script, "sh", *words, environment=environment)
    read_until(running, "model: tflops")
    running.send_signal(signal.SIGHUP)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0, out


@WITH_AND_WITHOUT
def test_a_step_that_exits_fails_its_run(
    tmp_path: Path, api: Api, environment: dict[str, str], flags: list[str]
) -> None:
    (tmp_path / "exits.yaml").write_text(EXITS)
    done = evo("run", str(tmp_path / "exits.yaml"), "--root", str(tmp_path / "store"), *flags, environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step a: its code called sys.exit(0)" in done.stderr
    states = [(run["state_type"], api.tasks(run)["a"]["state_type"]) for run in api.flow_runs(tmp_path / "store")]
    assert states == ([] if flags else [("FAILED", "FAILED")])

"""Jobs on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from evo_core.process import start_time
from tasks.launch import launcher_for
from tasks.launch.cluster import LocalCluster
from tasks.launch.launcher import JobFailed, LaunchRuntime, Stopped
from tasks.launch.local import LocalLauncher
from tests.tasks.launch.runs import ROOT, Run, make_job, processes_of, wait_until

LOCAL = LocalLauncher(LocalCluster())


def test_lines_and_progress_are_followed_and_the_log_is_appended_to(state: Path) -> None:
    log = state / "log-1.txt"
    log.write_text("of an earlier run\n")
    run = Run(LOCAL, make_job(state, "print:one", "progress:4", "sleep:0.5", "print:two"))
    run.succeed()
    assert run.lines == ["one", "two"]
    assert [p["done"] for p in run.progress] == [4]
    assert log.read_text() == "of an earlier run\none\ntwo\n"


def test_several_ranks_run_under_torchrun(state: Path) -> None:
    run = Run(LOCAL, make_job(state, "environment:RANK", "environment:WORLD_SIZE", ranks_per_node=2))
    run.succeed()
    assert sorted(run.printed()) == ["RANK=0", "RANK=1", "WORLD_SIZE=2", "WORLD_SIZE=2"]


def test_a_job_does_not_take_itself_for_part_of_another(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "EVO_JOB_FOLDER", "X")
    run = Run(LOCAL, make_job(state, *(f"environment:{n}" for n in names), environment={"X": "a b"}, cpus_per_rank=3))
    run.succeed()
    values = [line.partition("=")[2] for line in run.lines]
    assert values == ["None", "None", "None", "None", "3", str(state), "a b"]


def test_the_jobs_own_error_comes_back(state: Path) -> None:
    error = Run(LOCAL, make_job(state, "error:out of luck", max_restarts=0)).end()
    assert isinstance(error, JobFailed) and error.message == "RuntimeError: out of luck (rank 0 on here)"
    assert not error.user_error


def test_without_an_error_of_its_own_the_last_lines_come_back(state: Path) -> None:
    error = Run(LOCAL, make_job(state, "print:about to fall", "exit:3", max_restarts=0)).end()
    assert isinstance(error, JobFailed)
    assert "exit status 3" in error.message and "about to fall" in error.message and str(state) in error.message


def test_a_mistake_of_the_users_is_not_tried_again(state: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        count = tmp_path / f"count-{ranks}"
        job = make_job(state, f"count:{count}", "sleep:0.2", "user-error:no such key", ranks_per_node=ranks)
        error = Run(LOCAL, job).end()
        assert isinstance(error, JobFailed) and error.user_error and error.message == "no such key"
        assert count.read_text().count("\n") == ranks


def test_a_crash_is_tried_again_within_the_budget(state: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    run = Run(LOCAL, make_job(state, "progress:1", f"fail-first:2:{count}", "print:well", max_restarts=2))
    run.succeed()
    assert run.printed() == ["well"]
    assert [line for line in run.lines if "restart" in line] == [
        "[evo] RuntimeError: try 0 (rank 0 on here); restart 1 of 2",
        "[evo] RuntimeError: try 1 (rank 0 on here); restart 2 of 2",
    ]
    assert not (state / "error.json").exists()


def test_a_fault_at_the_start_is_not_tried_for_ever(state: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    error = Run(LOCAL, make_job(state, f"fail-first:9:{count}", max_restarts=9)).end()
    assert isinstance(error, JobFailed) and "tried 2 times" in error.message
    assert count.read_text().count("\n") == 2


@pytest.mark.faults
def test_stop_lets_the_job_end_by_itself(state: Path) -> None:
    run = Run(LOCAL, make_job(state, "slow-stop:1", "print:up", "sleep:60", ranks_per_node=2))
    wait_until(lambda: run.lines.count("up") == 2, "both ranks are up")
    run.stop()
    assert isinstance(run.end(20), Stopped)
    assert run.lines.count("saved") == 2 and not processes_of(state)


@pytest.mark.faults
def test_stop_kills_after_the_grace(state: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    run = Run(
        LocalLauncher(LocalCluster(grace_seconds=0.5)),
        make_job(state, f"child:{child}", "deaf", "print:up", "sleep:60"),
    )
    run.wait_for_line("up")
    run.stop()
    assert isinstance(run.end(10), Stopped)
    assert not processes_of(state) and start_time(int(child.read_text())) is None


@pytest.mark.faults
def test_nothing_outlives_a_killed_run(state: Path, tmp_path: Path) -> None:
    """`kill -9` of the run: torchrun, its ranks and their children in sessions of their own all go."""
    child = tmp_path / "child"
    text = f"""
import threading
from pathlib import Path
from tasks.launch.cluster import LocalCluster
from tasks.launch.local import LocalLauncher
from tests.tasks.launch.runs import make_job
job = make_job(Path({str(state)!r}), "deaf", "child:{child}", "print:up", "sleep:60", ranks_per_node=2)
LocalLauncher(LocalCluster()).run(job, stop=threading.Event(), on_progress=print, on_line=print)
"""
    run = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT)
    try:
        log = state / "log-1.txt"
        wait_until(lambda: log.exists() and log.read_text().count("up") == 2, "both ranks are up")
        assert len(processes_of(state)) >= 4
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    wait_until(lambda: not processes_of(state), "the job is gone", 5)
    assert start_time(int(child.read_text())) is None


def test_what_a_job_leaves_behind_is_ended_with_it(state: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    Run(LOCAL, make_job(state, f"child:{child}")).succeed()
    assert start_time(int(child.read_text())) is None


def test_another_process_can_cancel(state: Path) -> None:
    run = Run(LOCAL, make_job(state, "print:up", "sleep:60"))
    run.wait_for_line("up")
    assert not LOCAL.alive(state)  # there is nothing to attach to
    said = LOCAL.cancel(state)
    assert said is not None and "evo-test-state" in said
    error = run.end(5)
    assert isinstance(error, JobFailed) and "cancelled" in error.message
    assert LOCAL.cancel(state) is None


def test_one_machine_has_one_node() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.nodes: 2 nodes were asked for"):
        launcher_for(LaunchRuntime(nodes=2))

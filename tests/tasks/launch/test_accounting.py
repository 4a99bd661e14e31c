"""Jobs on a real Slurm cluster with accounting: how one ended that the controller has forgotten, and who may submit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from tasks.launch import job_outcome
from tasks.launch.cluster import SlurmCluster, load_cluster
from tasks.launch.launcher import JobFailed, LaunchRuntime
from tasks.launch.record import JobRecord, exit_marker_path, read_record, write_record
from tasks.launch.slurm import SlurmLauncher
from tasks.launch.slurm_follow import SlurmFollow
from tests.slurm_cluster import SlurmCluster as RunningCluster
from tests.slurm_cluster import found_by_clients, require_accounting, slurm_cluster
from tests.tasks.launch.runs import Run, make_job, wait_until

pytestmark = pytest.mark.slurm

LOST = 1.0
"""What the cluster file says of `lost_seconds`: minutes of a cluster that is not in a hurry."""


@pytest.fixture(scope="module")
def accounted() -> Iterator[RunningCluster]:
    """A cluster whose controller forgets jobs at once, with slurmdbd, where nobody submits without an account."""
    require_accounting()
    with slurm_cluster(min_job_age=1, accounting=True, enforce=True) as cluster, found_by_clients(cluster):
        yield cluster


def launcher_for(folder: Path, text: str = "") -> SlurmLauncher:
    file = folder / "accounted.yaml"
    file.write_text(f"kind: slurm\npoll_seconds: 0.3\nlost_seconds: {LOST}\n{text}")
    cluster = load_cluster(str(file))
    assert isinstance(cluster, SlurmCluster)
    return SlurmLauncher(cluster)


@pytest.fixture
def launcher(accounted: RunningCluster, tmp_path: Path) -> SlurmLauncher:
    return launcher_for(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No requeue is under way in these tests: what Slurm shows is believed sooner."""
    monkeypatch.setattr(job_outcome, "SETTLE", 0.5)


def recorded(state: Path) -> JobRecord:
    record = read_record(state)
    assert record is not None and record.job_id is not None
    return record


def state_of(folder: Path, name: str) -> Path:
    state = folder / name
    state.mkdir()
    return state


def forgotten(cluster: RunningCluster, *states: Path) -> None:
    wait_until(lambda: not {recorded(s).job_id for s in states} & set(cluster.jobs()), "the controller forgets them")


@pytest.fixture(scope="module")
def over(accounted: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """State folders of jobs that have ended and that the controller has forgotten. A test for each of them."""
    folder = tmp_path_factory.mktemp("over")
    actions = {"well": ["print:x"], "badly": ["exit:3"], "cancelled": ["print:up", "sleep:60"], "missed": ["exit:3"]}
    actions["unnamed"] = [f"count:{folder / 'count'}"]
    states = {name: state_of(folder, name) for name in actions}
    runs = {name: Run(launcher_for(folder), make_job(states[name], *what)) for name, what in actions.items()}
    runs["cancelled"].wait_for_line("up")
    accounted.client("scancel", str(recorded(states["cancelled"]).job_id))
    for run in runs.values():
        run.end()
    forgotten(accounted, *states.values())
    return states


def end_of(launcher: SlurmLauncher, state: Path) -> str:
    """How a follower that begins now finds that the recorded job has ended: nothing for success, else the error."""
    record = recorded(state)
    follow = SlurmFollow(launcher.cluster, launcher.commands, state, record, lambda _: None, lambda _: None)
    try:
        follow.follow(threading.Event())
    except JobFailed as failed:
        return failed.message
    return ""


def test_the_end_of_a_job_that_the_controller_has_forgotten(
    launcher: SlurmLauncher, over: dict[str, Path], quick: None
) -> None:
    """It is known by the job's own word, where it left one, else by the accounting."""
    assert end_of(launcher, over["well"]) == ""
    assert "exit status 3" in end_of(launcher, over["badly"])
    assert "Slurm: CANCELLED" in end_of(launcher, over["cancelled"])
    for name in ("well", "badly", "cancelled"):
        exit_marker_path(over[name], 1).unlink(missing_ok=True)
    assert "Slurm: FAILED (exit code 3:0)" in end_of(launcher, over["badly"])
    assert "Slurm: CANCELLED" in end_of(launcher, over["cancelled"])
    assert "it left no word" in end_of(launcher, over["well"]), "where its files lie nobody knows: no success"


@pytest.mark.slow
def test_a_job_of_several_turns_ends_as_the_last_one_does(
    accounted: RunningCluster, launcher: SlurmLauncher, tmp_path: Path, quick: None
) -> None:
    """The accounting has a row for each turn of a job that was put back into the queue."""
    state, go = state_of(tmp_path, "twice"), tmp_path / "go"
    run = Run(launcher, make_job(state, "print:up", f"until:{go}", "exit:3", max_restarts=0))
    run.wait_for_line("up")
    accounted.client("scontrol", "requeue", str(recorded(state).job_id))
    run.wait_for_line("requeued 1 times")
    go.touch()
    run.end()
    forgotten(accounted, state)
    exit_marker_path(state, 1).unlink()
    job_id = str(recorded(state).job_id)
    turns = accounted.client("sacct", "-X", "-D", "-P", "-n", "-j", job_id, "-o", "State").splitlines()
    assert len(turns) == 2 and turns[-1] == "FAILED"
    assert "Slurm: FAILED (exit code 3:0)" in end_of(launcher, state)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_end_of_a_job_whose_time_was_up(
    accounted: RunningCluster, launcher: SlurmLauncher, tmp_path: Path, quick: None
) -> None:
    """Slurm ends it before its batch script has said anything: the accounting says why."""
    state = state_of(tmp_path, "late")
    job_id = accounted.client("sbatch", "--parsable", "--time=1", "--output=/dev/null", "--wrap=sleep 300").strip()
    record = JobRecord(
        cluster="accounted", name="late", attempt=1, log=state / "log", log_start=0, submitted=time.time(), host="",
        job_id=job_id,
    )  # fmt: skip
    write_record(state, record)
    assert launcher.alive(state)
    wait_until(lambda: not launcher.alive(state), "Slurm ends it", 200)
    forgotten(accounted, state)
    assert "Slurm: TIMEOUT" in end_of(launcher, state)


def test_slurmdbd_is_away(
    accounted: RunningCluster, launcher: SlurmLauncher, over: dict[str, Path], tmp_path: Path, quick: None
) -> None:
    """A whole run without it; and a job that only it remembers is asked for until it is back."""
    failed, missed = over["missed"], state_of(tmp_path, "whole")
    exit_marker_path(failed, 1).unlink()
    accounted.accounting.stop_slurmdbd()
    try:
        launcher.preflight(LaunchRuntime())
        assert launcher.commands.account(str(recorded(failed).job_id), recorded(failed).submitted) is None
        whole = Run(launcher, make_job(missed, "print:here"))
        whole.succeed()
        assert whole.printed() == ["here"]
        patient = launcher_for(tmp_path, "").cluster.model_copy(update={"lost_seconds": 300.0})
        lines: list[str] = []
        ends: list[str] = []
        record = recorded(failed)
        follow = SlurmFollow(patient, launcher.commands, failed, record, lambda _: None, lines.append)

        def wait() -> None:
            try:
                follow.follow(threading.Event())
            except JobFailed as error:
                ends.append(error.message)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_until(lambda: any("its accounting does not answer" in line for line in lines), f"told: {lines}")
        assert "lost" in end_of(launcher, failed), "after the grace it is given up, in words that are true"
        assert ends == []
    finally:
        accounted.accounting.start_slurmdbd()
    thread.join(40)
    assert len(ends) == 1 and "Slurm: FAILED (exit code 3:0)" in ends[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slurmdbd_is_away_for_minutes(accounted: RunningCluster, launcher: SlurmLauncher, tmp_path: Path) -> None:
    state = state_of(tmp_path, "long")
    run = Run(launcher, make_job(state, "print:up", "sleep:170", "print:done"))
    run.wait_for_line("up")
    accounted.accounting.stop_slurmdbd()
    try:
        run.succeed(240)
    finally:
        accounted.accounting.start_slurmdbd()
    assert run.printed()[-1] == "done"


def test_a_job_without_an_id_is_found_after_it_was_forgotten(
    accounted: RunningCluster, launcher: SlurmLauncher, over: dict[str, Path]
) -> None:
    """After a crash between `sbatch` and its answer: by name in the accounting, and by its own word without that."""
    state, count = over["unnamed"], over["unnamed"].parent / "count"
    known = recorded(state)
    assert launcher.commands.find(known.name, known.submitted) == known.job_id
    write_record(state, known.model_copy(update={"job_id": None}))
    accounted.accounting.stop_slurmdbd()
    try:
        Run(launcher, make_job(state, f"count:{count}")).succeed()
    finally:
        accounted.accounting.start_slurmdbd()
    assert recorded(state).job_id == known.job_id and count.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("text", "runtime", "words"),
    [
        ("account: nobodys", {}, ["accounted.yaml:4: account", "Invalid account", "sacctmgr show assoc"]),
        ("qos: none", {}, ["accounted.yaml:4: qos", "Invalid qos"]),
        ("sbatch_args: [--constraint=tpu]", {}, ["accounted.yaml:4: sbatch_args", "Invalid feature"]),
        ("sbatch_args: [--gres=tpu:1]", {}, ["accounted.yaml", "gpus", "sinfo"]),
    ],
)
def test_what_slurm_never_takes_is_said_before_work(
    accounted: RunningCluster, tmp_path: Path, text: str, runtime: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        launcher_for(tmp_path, text).preflight(LaunchRuntime.model_validate(runtime))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_limit_on_jobs_refuses_the_job_and_not_the_run(
    accounted: RunningCluster, launcher: SlurmLauncher, tmp_path: Path
) -> None:
    me, go = str(accounted.client("id", "-un").strip()), tmp_path / "go"
    first = Run(launcher, make_job(state_of(tmp_path, "one"), "print:up", f"until:{go}"))
    first.wait_for_line("up")
    accounted.client("sacctmgr", "-i", "modify", "user", me, "set", "maxsubmitjobs=1")
    try:
        started = time.monotonic()
        launcher.preflight(LaunchRuntime())  # it may be otherwise when the step is due
        assert time.monotonic() - started < 10
        other = state_of(tmp_path, "two")
        error = Run(launcher, make_job(other, "print:x")).end()
        assert isinstance(error, ConfigError) and "accounted.yaml" in str(error)
        assert "AssocMaxSubmitJobLimit" in str(error) and "wait until other jobs have ended" in str(error)
        assert not (other / "job.json").exists()
    finally:
        accounted.client("sacctmgr", "-i", "modify", "user", me, "set", "maxsubmitjobs=-1")
        go.touch()
    first.succeed()


def test_more_memory_than_was_asked_for_is_the_cause(accounted: RunningCluster, tmp_path: Path) -> None:
    state = state_of(tmp_path, "hog")
    launcher = launcher_for(tmp_path, "sbatch_args: [--mem=100]")
    error = Run(launcher, make_job(state, "progress:1", "hog:300", max_restarts={"out_of_memory": 0})).end()
    assert isinstance(error, JobFailed) and error.message.startswith("out of memory"), error
    assert "memory limit" in error.message

"""Jobs on a real Slurm cluster of two nodes (which has no accounting: `sacct` knows nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from tasks.launch.cluster import LocalCluster, SlurmCluster, load_cluster
from tasks.launch.commands import Seen, SlurmCommands
from tasks.launch.launcher import JobFailed, Stopped
from tasks.launch.local import LocalLauncher
from tasks.launch.record import read_record
from tasks.launch.slurm import SlurmLauncher
from tests.slurm_cluster import SlurmCluster as RunningCluster
from tests.tasks.launch.runs import ROOT, Run, make_job, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def cluster_file(slurm: RunningCluster, tmp_path: Path) -> Path:
    """The shipped cluster file, asking Slurm more often."""
    file = tmp_path / "quick.yaml"
    quick = "poll_seconds: 0.3\nlost_seconds: 3\nenvironment: {GLOO_SOCKET_IFNAME: lo}\n"
    file.write_text((ROOT / "configs/clusters/slurm.yaml").read_text() + quick)
    return file


@pytest.fixture
def launcher(cluster_file: Path) -> SlurmLauncher:
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    return SlurmLauncher(cluster)


def job_id(state: Path) -> str:
    record = read_record(state)
    assert record is not None and record.job_id is not None
    return record.job_id


def test_the_shipped_cluster_file_works_as_it_is(slurm: RunningCluster, state: Path) -> None:
    cluster = load_cluster("slurm")
    assert isinstance(cluster, SlurmCluster)
    launcher = SlurmLauncher(cluster)
    launcher.preflight()
    run = Run(launcher, make_job(state, "print:here", cluster="slurm"))
    run.succeed()
    assert run.printed() == ["here"] and not launcher.alive(state)


def test_lines_and_progress_are_followed(launcher: SlurmLauncher, state: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run = Run(launcher, make_job(state, "print:one", "progress:4", f"until:{go}", "print:two", nodes=2))
    run.wait_for_line("one")
    wait_until(lambda: run.progress, "progress")
    run.wait_for_line("RUNNING (node[1-2])")
    assert launcher.alive(state) and "two" not in run.lines
    go.touch()
    run.succeed()
    assert run.printed() == ["one", "one", "two", "two"]
    assert run.progress[0]["done"] == 4


def test_the_jobs_own_error_comes_back(launcher: SlurmLauncher, state: Path) -> None:
    error = Run(launcher, make_job(state, "error:out of luck", max_restarts=0)).end()
    assert isinstance(error, JobFailed) and error.message == "RuntimeError: out of luck (rank 0 on here)"


def test_without_an_error_of_its_own_the_last_lines_come_back(launcher: SlurmLauncher, state: Path) -> None:
    error = Run(launcher, make_job(state, "print:about to fall", "exit:3", max_restarts=0)).end()
    assert isinstance(error, JobFailed)
    assert "failed: exit status 3" in error.message and "about to fall" in error.message


def test_a_crash_is_tried_again_and_a_users_mistake_is_not(
    launcher: SlurmLauncher, state: Path, tmp_path: Path
) -> None:
    tries, mistakes = tmp_path / "tries", tmp_path / "mistakes"
    run = Run(launcher, make_job(state, "progress:1", f"fail-first:2:{tries}", "print:well", max_restarts=2))
    run.succeed()
    assert run.printed() == ["well"] and "[evo] crash on rank 0 (here), exit status 1; restart 2 of 2" in run.lines
    error = Run(launcher, make_job(state, f"count:{mistakes}", "user-error:no such key", attempt=2)).end()
    assert isinstance(error, JobFailed) and error.user_error and error.message == "no such key"
    assert mistakes.read_text().count("\n") == 1


@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_ranks_on_two_nodes_find_each_other(cluster_file: Path, state: Path, launch: str) -> None:
    cluster_file.write_text(cluster_file.read_text().replace("launch: torchrun", f"launch: {launch}"))
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    job = make_job(state, module="tests.tasks.launch.all_reduce", nodes=2, ranks_per_node=2)
    run = Run(SlurmLauncher(cluster), job)
    run.succeed(120)
    launcher = "torch" if launch == "torchrun" else "slurm"
    assert [line for line in run.lines if line.startswith("launcher")] == [f"launcher {launcher} sum 10.0 of 4"] * 4


def test_stop_leaves_the_job_and_a_second_run_follows_it(
    slurm: RunningCluster, launcher: SlurmLauncher, state: Path, tmp_path: Path
) -> None:
    go, count = tmp_path / "go", tmp_path / "count"
    job = make_job(state, f"count:{count}", "print:one", f"until:{go}", "print:two")
    first = Run(launcher, job)
    first.wait_for_line("one")
    first.stop()
    error = first.end()
    assert isinstance(error, Stopped) and f"scancel {job_id(state)}" in str(error)
    assert launcher.alive(state)
    with pytest.raises(ConfigError, match="makes this artifact already"):  # the local launcher sees it too
        LocalLauncher(LocalCluster()).run(job, stop=first._stop, on_progress=print, on_line=print)
    second, third = Run(launcher, job), Run(launcher, job)
    for run in (second, third):
        run.wait_for_line("attached to")
    go.touch()
    second.succeed()
    third.succeed()
    assert second.printed() == ["two"], "the offset of the first was taken over"
    assert count.read_text().count("\n") == 1
    Run(launcher, job).succeed()  # it ended well: nothing is submitted
    assert count.read_text().count("\n") == 1


DRIVER = """
import sys, threading
from pathlib import Path
from tasks.launch.cluster import load_cluster
from tasks.launch.slurm import SlurmLauncher
from tests.tasks.launch.runs import make_job
job = make_job(Path(sys.argv[1]), *sys.argv[3:])
SlurmLauncher(load_cluster(sys.argv[2])).run(job, stop=threading.Event(), on_progress=print, on_line=print)
"""


@pytest.mark.faults
@pytest.mark.parametrize("killed", ["before", "after"])
def test_killed_around_sbatch_gives_one_job(
    launcher: SlurmLauncher, cluster_file: Path, state: Path, tmp_path: Path, killed: str
) -> None:
    """The submitting process is killed after the intent: before Slurm has the job, or before it has told its id."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    shim = binaries / "sbatch"
    real = "PATH=${PATH#*:} sbatch"
    shim.write_text(
        '#!/bin/bash\nkill -9 $PPID; exec sleep 0.2\n' if killed == "before" else
        f'#!/bin/bash\nkill -9 $PPID; sleep 0.5; {real} "$@"\n'
    )  # fmt: skip
    shim.chmod(0o755)
    count = tmp_path / "count"
    actions = (f"count:{count}", "print:done")
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", DRIVER, str(state), str(cluster_file), *actions]
    driver = subprocess.run(command, env=environment, cwd=ROOT, timeout=60, check=False)
    assert driver.returncode == -signal.SIGKILL
    record = read_record(state)
    assert record is not None and record.job_id is None
    run = Run(launcher, make_job(state, *actions))
    run.succeed()
    assert run.printed() == ["done"]
    assert count.read_text().count("\n") == 1
    assert any("submitted" in line for line in run.lines) == (killed == "before")
    if killed == "after":
        assert job_id(state) and read_record(state).name == record.name  # type: ignore[union-attr]


class Forgetful(SlurmCommands):
    """A Slurm that has forgotten every job that ended (MinJobAge is over), without accounting."""

    def look(self, job_id: str) -> Seen | None:
        return None


@pytest.mark.faults
def test_killed_while_the_job_runs(launcher: SlurmLauncher, cluster_file: Path, state: Path, tmp_path: Path) -> None:
    """The next run learns the end from the job's own word, after Slurm has forgotten the job."""
    go, count = tmp_path / "go", tmp_path / "count"
    actions = (f"count:{count}", "print:up", f"until:{go}", "print:done")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(state), str(cluster_file), *actions], cwd=ROOT)
    try:
        log = state / "log-1.txt"
        wait_until(lambda: log.exists() and "up" in log.read_text(), "the job is up")
    finally:
        driver.kill()
        driver.wait()
    assert launcher.alive(state)
    go.touch()
    wait_until((state / "exit-1.json").exists, "the job has ended")
    forgetful = SlurmLauncher(launcher.cluster, Forgetful())
    assert not forgetful.alive(state) and forgetful.commands.account(job_id(state), 0) is None
    run = Run(forgetful, make_job(state, *actions))
    run.succeed()
    assert "done" in run.lines and count.read_text().count("\n") == 1


@pytest.mark.faults
def test_killed_while_the_job_waits(launcher: SlurmLauncher, cluster_file: Path, state: Path, tmp_path: Path) -> None:
    """The next run follows the job that is still in the queue."""
    cluster_file.write_text(cluster_file.read_text() + "sbatch_args: [--begin=now+3]\n")
    count = tmp_path / "count"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(state), str(cluster_file), f"count:{count}"], cwd=ROOT)
    try:
        wait_until(lambda: (record := read_record(state)) is not None and record.job_id is not None, "it is submitted")
    finally:
        driver.kill()
        driver.wait()
    assert not count.exists() and launcher.alive(state)
    run = Run(launcher, make_job(state, f"count:{count}"))
    run.succeed()
    assert run.lines[0].startswith("[evo] attached to") and count.read_text().count("\n") == 1


def test_a_job_that_left_no_word_is_lost_after_a_grace(launcher: SlurmLauncher, state: Path) -> None:
    run = Run(SlurmLauncher(launcher.cluster, Forgetful()), make_job(state, "sleep:30"))
    error = run.end()
    assert isinstance(error, JobFailed) and "lost" in error.message
    assert launcher.cancel(state)


def test_cancel_ends_the_job(slurm: RunningCluster, launcher: SlurmLauncher, state: Path) -> None:
    job = make_job(state, "print:up", "sleep:60", nodes=2)
    run = Run(launcher, job)
    run.wait_for_line("up")
    said = launcher.cancel(state)
    assert said is not None and said.startswith(f"Slurm job {job_id(state)} ")
    error = run.end()
    assert isinstance(error, JobFailed) and "was cancelled" in error.message
    assert slurm.jobs()[job_id(state)] == "CANCELLED"
    assert launcher.cancel(state) is None and not launcher.alive(state)


def test_scancel_by_hand_is_told(slurm: RunningCluster, launcher: SlurmLauncher, state: Path) -> None:
    run = Run(launcher, make_job(state, "print:up", "sleep:60"))
    run.wait_for_line("up")
    slurm.client("scancel", job_id(state))
    error = run.end(20)
    assert isinstance(error, JobFailed) and "CANCELLED" in error.message
    again = Run(launcher, make_job(state, "print:up"))  # nobody is to wait for it any more
    again.succeed()
    assert any("submitted" in line for line in again.lines)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_wall_time_saves_and_requeues(
    slurm: RunningCluster, launcher: SlurmLauncher, state: Path, tmp_path: Path, ranks: int
) -> None:
    """USR1 reaches the batch shell, the ranks get SIGTERM, the job goes back into the queue and on."""
    go = tmp_path / "go"
    actions = ("slow-stop:1", "advance", "print:up", f"until:{go}", "print:done")
    run = Run(launcher, make_job(state, *actions, ranks_per_node=ranks, time="10m"))
    wait_until(lambda: run.lines.count("up") == ranks, "the ranks are up")
    slurm.client("scancel", "--signal=USR1", "--batch", job_id(state))
    run.wait_for_line("requeued 1 times")
    assert run.lines.count("saved") == ranks
    go.touch()
    run.succeed()
    assert run.printed().count("done") == ranks and run.progress[-1]["done"] > run.progress[0]["done"]
    marker = json.loads((state / "exit-1.json").read_text())
    assert marker["restart"] == 1 and marker["exit_code"] == 0


@pytest.mark.slow
def test_wall_time_is_told_by_a_controller_that_comes_back(
    slurm: RunningCluster, launcher: SlurmLauncher, state: Path, tmp_path: Path
) -> None:
    """The ranks hear of it from Slurm alone, so the script asks again where Slurm does not answer."""
    go = tmp_path / "go"
    run = Run(launcher, make_job(state, "slow-stop:0", "advance", "print:up", f"until:{go}", time="10m"))
    run.wait_for_line("up")
    script = f"{slurm.folder}/.*/job{int(job_id(state)):05d}/slurm_script"
    found = subprocess.run(["pgrep", "-f", script], capture_output=True, text=True, check=True).stdout.split()
    slurm.stop_controller()
    try:
        os.kill(int(found[0]), signal.SIGUSR1)
        time.sleep(15)  # longer than scancel tries by itself
    finally:
        slurm.start_controller()
    run.wait_for_line("saved", 60)
    run.wait_for_line("requeued 1 times", 60)
    go.touch()
    run.succeed()


def test_wall_time_without_progress_is_not_requeued_for_ever(
    slurm: RunningCluster, launcher: SlurmLauncher, state: Path
) -> None:
    (state / "walltime-1").write_text("4\n")
    run = Run(launcher, make_job(state, "print:up", "until:never", time="10m"))
    run.wait_for_line("up")
    (state / "walltime-1").write_text("4\n")  # as an earlier turn that came to step 4 leaves it
    slurm.client("scancel", "--signal=USR1", "--batch", job_id(state))
    error = run.end()
    assert isinstance(error, JobFailed) and "the wall time was up" in error.message
    assert "[evo] no progress since the wall time was up before" in run.lines


def test_wall_time_can_be_a_failure(slurm: RunningCluster, launcher: SlurmLauncher, state: Path) -> None:
    run = Run(launcher, make_job(state, "print:up", "sleep:60", time="10m", on_walltime="fail"))
    run.wait_for_line("up")
    slurm.client("scancel", "--signal=USR1", "--batch", job_id(state))
    error = run.end()
    assert isinstance(error, JobFailed) and "the wall time was up" in error.message


def test_preemption_requeues(slurm: RunningCluster, launcher: SlurmLauncher, state: Path, tmp_path: Path) -> None:
    """A job of a higher tier takes the nodes: ours saves in the grace that it gets, waits and goes on."""
    count = tmp_path / "count"
    job = make_job(state, "advance", f"count:{count}", "print:up", f"until:{tmp_path / 'go'}", max_restarts=0)
    run = Run(launcher, job)
    run.wait_for_line("up")
    slurm.client("sbatch", "--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    run.wait_for_line("requeued 1 times", 40)
    (tmp_path / "go").touch()
    run.succeed()
    assert count.read_text().count("\n") == 2


@pytest.mark.faults
@pytest.mark.slow
def test_a_silent_controller_is_no_failure(
    slurm: RunningCluster, launcher: SlurmLauncher, state: Path, tmp_path: Path
) -> None:
    go, other = tmp_path / "go", tmp_path / "other"
    other.mkdir()
    run = Run(launcher, make_job(state, "print:up", f"until:{go}", "print:done"))
    run.wait_for_line("up")
    slurm.stop_controller()
    try:
        late = Run(launcher, make_job(other, "print:late"))
        with ThreadPoolExecutor() as threads:  # all three ask at once: Slurm's programs give up after eight seconds
            alive = threads.submit(launcher.alive, state)
            run.wait_for_line("Slurm does not answer")
            late.wait_for_line("Slurm does not answer")
            assert alive.result(), "nobody can tell that it has ended"
    finally:
        slurm.start_controller()
    go.touch()
    run.succeed()
    late.succeed()
    assert run.printed()[-1] == "done" and late.printed() == ["late"]


def test_two_runs_at_once_submit_one_job(launcher: SlurmLauncher, state: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    job = make_job(state, f"count:{count}", "sleep:1")
    runs = [Run(launcher, job) for _ in range(3)]
    for run in runs:
        run.succeed()
    assert sum("submitted" in line for run in runs for line in run.lines) == 1
    assert count.read_text().count("\n") == 1


def test_secrets_travel_but_are_written_nowhere(
    cluster_file: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = cluster_file.read_text().replace(
        "GLOO_SOCKET_IFNAME: lo", 'TOKEN: "${oc.env:MY_TOKEN}", PLAIN: "it\'s $HOME"'
    )
    cluster_file.write_text(text)
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    with pytest.raises(ConfigError, match="MY_TOKEN"):
        SlurmLauncher(cluster).preflight()
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value")
    run = Run(SlurmLauncher(cluster), make_job(state, "environment:PLAIN", "length:TOKEN"))
    run.succeed()
    assert run.printed() == ["PLAIN=it's $HOME", "TOKEN has 12 characters"]
    for file in state.iterdir():
        assert b"s3cr3t" not in file.read_bytes(), file


def test_a_request_that_cannot_be_met_is_told(launcher: SlurmLauncher, state: Path) -> None:
    run = Run(launcher, make_job(state, "print:x", nodes=40))
    run.wait_for_line("PENDING (PartitionConfig); as it is asked for it may never start")
    assert launcher.cancel(state)
    assert isinstance(run.end(), JobFailed)


def test_slurms_refusal_names_the_cluster_file(cluster_file: Path, state: Path) -> None:
    cluster_file.write_text(cluster_file.read_text() + "sbatch_args: [--constraint=tpu]\n")
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    error = Run(SlurmLauncher(cluster), make_job(state, "print:x")).end()
    assert isinstance(error, ConfigError) and "quick.yaml" in str(error) and "refused" in str(error)
    assert not (state / "job.json").exists()


def test_preflight_names_what_is_missing(
    slurm: RunningCluster, cluster_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster_file.write_text(cluster_file.read_text() + "partition: debgu\n")
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    with pytest.raises(ConfigError, match=r'no partition .debgu.; did you mean "debug"'):
        SlurmLauncher(cluster).preflight()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError, match=r"quick\.yaml.*no sbatch"):
            SlurmLauncher(cluster).preflight()
    nowhere = tmp_path / "slurm.conf"
    nowhere.write_text(slurm.conf.read_text().replace("SlurmctldPort=", "SlurmctldPort=1#"))
    monkeypatch.setenv("SLURM_CONF", str(nowhere))
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"does not answer.*SLURM_CONF"):
        SlurmLauncher(cluster).preflight()
    assert time.monotonic() - started < 30


def test_a_store_that_nodes_cannot_see_is_refused(cluster_file: Path, state: Path) -> None:
    cluster_file.write_text(cluster_file.read_text() + "shared_root: /lustre/me\n")
    cluster = load_cluster(str(cluster_file))
    assert isinstance(cluster, SlurmCluster)
    error = Run(SlurmLauncher(cluster), make_job(state)).end()
    assert isinstance(error, ConfigError)
    assert "shared_root: the store" in str(error) and "is not under /lustre/me" in str(error)


def test_settings_of_the_clients_for_people_hide_no_job(
    launcher: SlurmLauncher, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person's shell sets for their own `squeue` and `sbatch`: filters, another form, waiting for the end."""
    settings = {
        "SQUEUE_PARTITION": "urgent", "SQUEUE_USERS": "nobody", "SQUEUE_STATES": "PENDING", "SQUEUE_FORMAT2": "JobID",
        "SCANCEL_PARTITION": "urgent", "SCANCEL_INTERACTIVE": "1", "SACCT_FORMAT": "JobID",
        "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-2", "SBATCH_ERROR": str(tmp_path / "elsewhere"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    count = tmp_path / "count"
    run = Run(launcher, make_job(state, f"count:{count}", "print:up", "sleep:60"))
    run.wait_for_line("RUNNING")
    run.wait_for_line("up")
    assert launcher.alive(state)
    assert launcher.cancel(state) == f"Slurm job {job_id(state)} ({read_record(state).name})"  # type: ignore[union-attr]
    assert isinstance(run.end(), JobFailed)
    assert count.read_text().count("\n") == 1 and not (tmp_path / "elsewhere").exists()

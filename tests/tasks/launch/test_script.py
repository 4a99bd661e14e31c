"""The batch script, run by bash with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evo_core.storage.files import write_file
from tasks.launch.cluster import SlurmCluster, load_cluster
from tasks.launch.launcher import Job
from tasks.launch.script import batch_script, sbatch_arguments, slurm_time
from tests.tasks.launch.runs import make_job

NASTY = ["a b", "it's", 'say "x"', "$HOME", "`id`", "$(id)", "*", "back\\slash", "two\nlines", "", "ünï"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`srun` runs its command here, `scontrol` knows one node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": 'case "$2" in hostnames) echo node1 ;; node) echo "NodeName=node1 X=1 NodeAddr=10.0.0.1 Y" ;; esac',
        "scancel": "true",
        "sinfo": "true",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def cluster(tmp_path: Path, text: str = "") -> SlurmCluster:
    file = tmp_path / "mine.yaml"
    file.write_text(f"kind: slurm\n{text}")
    found = load_cluster(str(file))
    assert isinstance(found, SlurmCluster)
    return found


def run_script(where: SlurmCluster, job: Job) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    script = job.state / "job.sh"
    write_file(script, batch_script(where, job, sbatch_arguments(where, job, job.name)))
    slurm = {
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    environment = {**os.environ, **slurm}
    done = subprocess.run(
        ["bash", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )
    return done, json.loads((job.state / "exit-1.json").read_text())


def test_everything_is_quoted(programs: Path, tmp_path: Path) -> None:
    state = tmp_path / "it's a $state"
    state.mkdir()
    actions = [f"print:{text}" for text in NASTY] + ["environment:NASTY"]
    job = make_job(state, *actions, environment={"NASTY": " ".join(NASTY)})
    done, word = run_script(cluster(tmp_path), job)
    assert done.returncode == 0, done.stderr
    own = done.stdout.partition("\n")[2]  # after the script's own line
    assert own == "\n".join(NASTY) + "\nNASTY=" + " ".join(NASTY) + "\n"
    assert word == {**word, "job_id": "12", "restart": 0, "reason": "exit", "exit_code": 0, "nodes": "node1"}
    assert word["started"] <= word["ended"]


def test_a_folder_whose_name_is_not_utf8(programs: Path, tmp_path: Path) -> None:
    state = tmp_path / os.fsdecode(b"caf\xe9")
    state.mkdir()
    done, word = run_script(cluster(tmp_path), make_job(state, "print:here"))
    assert (done.returncode, word["reason"]) == (0, "exit"), done.stderr


def test_setup_lines_and_container(programs: Path, tmp_path: Path, state: Path) -> None:
    (programs / "wrap").write_text('#!/bin/bash\necho "in $1 $A"; shift; exec "$@"\n')
    (programs / "wrap").chmod(0o755)
    where = cluster(tmp_path, 'setup: [\'export A="set up"\']\ncontainer: wrap "my image"\n')
    done, _ = run_script(where, make_job(state, "print:here"))
    assert done.stdout.splitlines()[1:] == ["in my image set up", "here"]


def test_a_set_up_that_fails_is_told(programs: Path, tmp_path: Path, state: Path) -> None:
    done, word = run_script(cluster(tmp_path, "setup: [module load cuda]\n"), make_job(state, "print:here"))
    assert "here" not in done.stdout and "module" in done.stderr
    assert word["exit_code"] == 127 and word["reason"] == "exit"


def test_restarts_are_counted_across_requeues(programs: Path, tmp_path: Path, state: Path) -> None:
    (state / "restarts-1").write_text("crash rank 0 (here)\nnode node7\ncrash rank 0 (here)\n")
    count = tmp_path / "count"
    done, word = run_script(cluster(tmp_path), make_job(state, "progress:1", f"fail-first:9:{count}", max_restarts=3))
    assert count.read_text().count("\n") == 2 and "restart 3 of 3" in done.stdout
    assert word["exit_code"] == 1


def test_a_fault_at_the_start_is_not_tried_for_ever(programs: Path, tmp_path: Path, state: Path) -> None:
    count = tmp_path / "count"
    run_script(cluster(tmp_path), make_job(state, f"fail-first:9:{count}", max_restarts=9))
    assert count.read_text().count("\n") == 2


def test_options(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "partition: gpu\naccount: me\nqos: high\nexclude: [n1, n2]\nsbatch_args: [--mem=0]\ngpu_type: a100\n"
    job = make_job(state, nodes=4, gpus_per_node=8, cpus_per_rank=6, time="48h")
    options = sbatch_arguments(cluster(tmp_path, text), job, "name")
    assert {
        "--partition=gpu", "--account=me", "--qos=high", "--exclude=n1,n2", "--mem=0", "--gpus-per-node=a100:8",
        "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=48", "--time=2-00:00:00", "--signal=B:USR1@180",
        "--requeue", "--open-mode=append", "--job-name=name",
    } <= set(options)  # fmt: skip
    per_rank = sbatch_arguments(cluster(tmp_path, "launch: srun\ngpus: gpus_per_task\n"), job, "name")
    assert {"--ntasks-per-node=8", "--cpus-per-task=6", "--gpus-per-task=1"} <= set(per_rank)
    gres = sbatch_arguments(cluster(tmp_path, "gpus: gres\n"), job, "name")
    assert "--gres=gpu:8" in gres
    assert not any("gpu" in option for option in sbatch_arguments(cluster(tmp_path), make_job(state), "name"))


def test_percent_signs_in_paths_are_no_patterns(tmp_path: Path) -> None:
    job = make_job(tmp_path / "100%j")
    assert f"--output={tmp_path}/100%%j/log-1.txt" in sbatch_arguments(cluster(tmp_path), job, "name")


def test_short_jobs_are_told_later(tmp_path: Path, state: Path) -> None:
    assert "--signal=B:USR1@30" in sbatch_arguments(cluster(tmp_path), make_job(state, time="2m"), "name")


def test_slurm_time() -> None:
    assert [slurm_time(s) for s in (60, 3600 * 48, 90061)] == ["0-00:01:00", "2-00:00:00", "1-01:01:01"]


def test_a_setup_line_that_ends_the_script_is_no_success(programs: Path, tmp_path: Path, state: Path) -> None:
    done, word = run_script(cluster(tmp_path, "setup: [exit 0]\n"), make_job(state, "print:here"))
    assert (done.returncode, word["exit_code"]) == (1, 1)
    assert "a line under setup: ended the script" in done.stdout
    done, word = run_script(cluster(tmp_path, "setup: [exit 3]\n"), make_job(state, "print:here"))
    assert (done.returncode, word["exit_code"]) == (3, 3)
